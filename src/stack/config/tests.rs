use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::super::builder::UpstreamBuilder;
use super::super::presets::Preset;
use super::*;
use crate::exchange::ProbeSource;

fn toml(text: &str) -> UpstreamConfig {
    toml::from_str(text).unwrap()
}

/// Every error of a configuration, one line each.
fn errors(config: UpstreamConfig) -> Vec<String> {
    let error = config.builder().build().unwrap_err();
    error.errors().iter().map(ToString::to_string).collect()
}

/// Every error of the configuration of a whole upstream.
#[cfg(all(feature = "balance", feature = "client"))]
fn whole_errors(config: UpstreamConfig) -> Vec<String> {
    let rules = crate::forward::ForwardingRules::new("edge").unwrap();
    let built = config.proxy::<http_body_util::Empty<bytes::Bytes>>(rules);
    built.map(drop).unwrap_err().errors().iter().map(ToString::to_string).collect()
}

#[cfg(not(all(feature = "balance", feature = "client")))]
fn whole_errors(config: UpstreamConfig) -> Vec<String> {
    errors(config)
}

fn toml_errors(text: &str) -> Vec<String> {
    errors(toml(&format!("name = \"shop\"\n{text}")))
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const WHOLE: &str = r#"
    name = "payments"
    preset = "batch"
    proxy_status = "shop-edge"

    [timeouts]
    response_head = "1500ms"
    attempt = "2s"
    total = "8s"
    body_idle = "1m 30s"
    max_duration = "none"
    unbounded = false

    [retry]
    attempts = 2
    base_backoff = "10ms"
    max_backoff = "0.5s"
    max_retry_after = "5s"
    body_cap = "64 KiB"
    budget = "10%"
    hedging = "p99"
    trust_idempotency_keys = true
    repeat_too_many_requests = true

    [circuit]
    consecutive_failures = 3
    ratio = 0.25
    min_calls = 50
    window = "30s"
    open_duration = "2s"
    max_open_duration = "20s"
    probe_timeout = "3s"
    slow_calls = "1s"
    slow_ratio = "75%"
    probe = "/health"

    [limiter]
    adaptive = true
    min = 4
    max = 64
    hold_slot_during_upgrade = true

    [topology]
    client_timeout = "10s"
    load_balancer_idle = "60s"
    load_balancer_propagation = "5s"
    server_keep_alive = "75s"
    upstream_keep_alive = "5s"
    upstream_timeout = "1s"
    connect = "0.5s"
    pool_idle = "3s"
    streaming = false
    drain_delay = "10s"
    grace = "30s"

    [error_page]
    contact = "Call the shop."
    reveal_upstream = true
"#;

#[test]
fn every_setting_reaches_the_builder() {
    let builder = toml(WHOLE).builder();
    assert_eq!(&*builder.name, "payments");
    let settings = builder.resolve();
    let limits = settings.timeouts;
    assert_eq!((limits.response_head, limits.attempt, limits.total), (Some(ms(1500)), Some(ms(2000)), Some(ms(8000))));
    assert_eq!((limits.body_idle, limits.max_duration), (Some(ms(90_000)), None));
    let retry = settings.retry.as_ref().unwrap().settings();
    assert_eq!((retry.policy.attempts, retry.policy.base_backoff, retry.policy.max_backoff), (2, ms(10), ms(500)));
    assert_eq!((retry.policy.max_retry_after, retry.body_cap), (ms(5000), 64 * 1024));
    assert!(retry.policy.trusts_keys && retry.policy.repeats_too_many);
    assert!(retry.hedging.as_ref().is_some_and(|hedging| hedging.fixed().is_none()));
    let circuit = settings.circuit.unwrap();
    assert_eq!((circuit.consecutive_failures, circuit.ratio.as_per_mille(), circuit.min_calls), (3, 250, 50));
    assert_eq!((circuit.window, circuit.open_duration, circuit.max_open_duration), (ms(30_000), ms(2000), ms(20_000)));
    assert_eq!(circuit.probe_timeout, ms(3000));
    assert!(matches!(&settings.probe, Some(ProbeSource::Fixed(request)) if request.uri() == "/health"));
    assert_eq!(circuit.slow.map(|(longer, share)| (longer, share.as_per_mille())), Some((ms(1000), 750)));
    assert_eq!(settings.limiter.as_ref().unwrap().effective_bounds(), (4, 64));
    assert!(settings.page.is_some() && settings.found.is_empty());
    assert!(toml(WHOLE).builder().build().is_ok());
}

#[test]
fn every_key_is_documented_and_read() {
    let docs = include_str!("mod.rs");
    for (table, keys) in all_tables() {
        let row = docs.lines().find(|line| line.starts_with(&format!("/// | `{table}`")));
        let row = if table.is_empty() { docs } else { row.unwrap() };
        for key in keys {
            assert!(row.contains(&format!("`{key}`")), "{table}.{key} is not in the table");
            // no key takes a list of numbers
            let (text, path) = match table {
                "" => (format!("{key} = [1]"), (*key).to_owned()),
                "endpoint" => (format!("endpoint = [{{ {key} = [1] }}]"), format!("endpoint[0].{key}")),
                table => (format!("{table}.{key} = [1]"), format!("{table}.{key}")),
            };
            let errors = whole_errors(toml::from_str(&text).unwrap());
            let found = if *key == "endpoint" { "found integer `1`" } else { "found a list" };
            let found = errors.iter().any(|error| error.starts_with(&format!("{path}: {found}: expected")));
            assert!(found, "{errors:?}");
        }
    }
}

#[test]
fn a_missing_key_takes_the_presets_value() {
    let presets = [
        ("latency_critical", Preset::LatencyCritical),
        ("standard", Preset::Standard),
        ("batch", Preset::Batch),
        ("streaming", Preset::Streaming),
    ];
    for (name, preset) in presets {
        let text = format!("name = \"a\"\npreset = \"{name}\"\n[timeouts]\n[retry]\n[circuit]\n[limiter]\n[topology]");
        let (read, built) = (toml(&text).builder().resolve(), UpstreamBuilder::new("a").preset(preset).resolve());
        assert_eq!(read.timeouts, built.timeouts);
        let (one, other) = (read.retry.as_ref().unwrap().settings(), built.retry.as_ref().unwrap().settings());
        assert_eq!(
            (one.policy, one.body_cap, one.hedging.is_some()),
            (other.policy, other.body_cap, other.hedging.is_some())
        );
        assert_eq!(format!("{:?}", read.circuit), format!("{:?}", built.circuit));
        assert_eq!(read.limiter.unwrap().effective_bounds(), built.limiter.unwrap().effective_bounds());
        assert_eq!(read.topology, built.topology);
        assert!(read.page.is_none());
        assert!(toml(&text).builder().build().is_ok());
    }
    let hedging = |text| toml(text).builder().resolve().retry.unwrap().settings().hedging.clone();
    assert!(hedging("preset = \"latency_critical\"\nretry.hedging = \"off\"").is_none());
    assert_eq!(hedging("retry.hedging = \"80ms\"").unwrap().fixed(), Some(ms(80)));
}

#[test]
fn json_is_read_like_toml() {
    let text = json!({
        "name": "shop", "timeouts": { "response_head": "2s", "total": "30s" },
        "retry": { "body_cap": 1000, "budget": 1, "hedging": "0.1s" }, "limiter": { "fixed": 7 },
    });
    let builder = serde_json::from_value::<UpstreamConfig>(text.clone()).unwrap().builder().resolve();
    assert_eq!(builder.timeouts.response_head, Some(ms(2000)));
    assert_eq!(builder.retry.as_ref().unwrap().settings().body_cap, 1000);
    assert_eq!(builder.limiter.as_ref().unwrap().effective_bounds(), (7, 7));
    let again: UpstreamConfig = serde_json::from_slice(text.to_string().as_bytes()).unwrap();
    assert!(again.builder().build().is_ok());
}

#[test]
fn the_limit_is_fixed_unless_the_file_says_adaptive_or_sets_a_bound() {
    for (keys, bounds) in [
        ("", (1024, 1024)),
        ("adaptive = false", (1024, 1024)),
        ("fixed = 7", (7, 7)),
        ("adaptive = true", (2, 1024)),
        ("max = 64", (2, 64)),
        ("adaptive = true\nmin = 8", (8, 1024)),
    ] {
        let builder = toml(&format!("name = \"a\"\n[limiter]\n{keys}")).builder();
        assert_eq!(builder.resolve().limiter.unwrap().effective_bounds(), bounds, "{keys}");
    }
    for keys in ["fixed = 7\nadaptive = true", "adaptive = false\nmax = 7"] {
        assert!(toml(&format!("name = \"a\"\n[limiter]\n{keys}")).builder().build().is_err(), "{keys}");
    }
}

#[test]
fn a_fault_is_named_with_its_key_and_what_to_write() {
    for (text, error) in [
        ("retry.atempts = 2", "retry.atempts: unknown key: did you mean `attempts`?"),
        ("timeouts.body-idle = \"1s\"", "timeouts.body-idle: unknown key: did you mean `body_idle`?"),
        ("retry.basebackof = \"1s\"", "retry.basebackof: unknown key: did you mean `base_backoff`?"),
        ("total = \"1s\"", "total: unknown key: `total` belongs to [timeouts]"),
        ("[retry]\nname = \"a\"", "retry.name: unknown key: `name` belongs to the top level, above all tables"),
        (
            "limiter.breaker = 1",
            "limiter.breaker: unknown key: expected one of fixed, adaptive, min, max, hold_slot_during_upgrade",
        ),
        ("timeouts.total = 30", "timeouts.total: missing unit: write \"30s\" or \"30ms\""),
        ("timeouts.total = 1.5", "timeouts.total: missing unit: write \"1.5s\" or \"1.5ms\""),
        ("timeouts.total = \"30\"", "timeouts.total: missing unit: write \"30s\" or \"30ms\""),
        ("timeouts.total = \"1m 30\"", "timeouts.total: missing unit: write \"30s\" or \"30ms\""),
        (
            "timeouts.total = \"soon\"",
            "timeouts.total: found string \"soon\": expected a duration such as \"1500ms\", \"2s\" or \"1m 30s\"",
        ),
        ("timeouts.total = \"3 fortnights\"", "timeouts.total: unknown unit \"fortnights\": use d, h, m, s, ms or us"),
        ("timeouts.total = \"101 years\"", "timeouts.total: 101 years is more than 100 years: write less"),
        (
            "retry.base_backoff = \"none\"",
            "retry.base_backoff: found string \"none\": expected a duration such as \"1500ms\", \"2s\" or \"1m 30s\"",
        ),
        ("retry.attempts = \"three\"", "retry.attempts: found string \"three\": expected a whole number from 1 to 10"),
        ("retry.attempts = -1", "retry.attempts: found integer `-1`: expected a whole number from 1 to 10"),
        ("retry.attempts = 99", "retry.attempts: found integer `99`: expected a whole number from 1 to 10"),
        ("retry.attempts = 2.0", "retry.attempts: found floating point `2.0`: expected a whole number from 1 to 10"),
        (
            "retry.body_cap = \"64 Kib\"",
            "retry.body_cap: found string \"64 Kib\": expected a size such as 65536, \"64 KiB\" or \"1 MiB\"",
        ),
        (
            "retry.budget = \"a fifth\"",
            "retry.budget: found string \"a fifth\": expected a fraction from 0.001 to 1, or from \"0.1%\" to \"100%\"",
        ),
        (
            "retry.hedging = \"p100\"",
            "retry.hedging: found string \"p100\": expected a quantile from \"p50\" to \"p99.9\"",
        ),
        ("retry.hedging = 95", "retry.hedging: missing unit: write \"95s\" or \"95ms\""),
        ("retry = 3", "retry: found integer `3`: expected a table, or `false` to leave this part out"),
        ("timeouts = false", "timeouts: found boolean `false`: expected a table"),
        ("timeouts.unbounded = \"yes\"", "timeouts.unbounded: found string \"yes\": expected a boolean"),
        ("error_page.contact = 5", "error_page.contact: found integer `5`: expected a string"),
        ("preset = \"standart\"", "preset: unknown value \"standart\": did you mean `standard`?"),
        (
            "preset = \"fast\"",
            "preset: unknown value \"fast\": expected one of latency_critical, standard, batch, streaming",
        ),
    ] {
        assert_eq!(toml_errors(text), [error]);
    }
    let twice = r#"{"name": "shop", "retry": {"attempts": 2, "attempts": 3}}"#;
    assert_eq!(
        errors(serde_json::from_str(twice).unwrap()),
        ["retry.attempts: this key occurs twice: keep one of the two"]
    );
    let list = serde_json::from_str::<UpstreamConfig>("[]").unwrap_err();
    assert!(list.to_string().contains("expected a table"), "{list}");
    let long = toml_errors(&format!("timeouts.total = \"{}\"", "9s".repeat(1000))).remove(0);
    assert!(long.len() < 200, "{long}");
}

#[test]
fn durations_sizes_and_fractions_are_read_as_people_write_them() {
    for (text, millis) in [("1500ms", 1500), ("1m 30s", 90_000), ("1m30s", 90_000), ("1.5s", 1500), ("1h", 3_600_000)] {
        let settings = toml(&format!("timeouts.total = \"{text}\"")).builder().resolve();
        assert_eq!(settings.timeouts.total, Some(ms(millis)), "{text}");
    }
    for (text, bytes) in [("1000", 1000), ("\"64 KiB\"", 65_536), ("\"1MB\"", 1_000_000), ("\"9B\"", 9)] {
        let settings = toml(&format!("retry.body_cap = {text}")).builder().resolve();
        assert_eq!(settings.retry.unwrap().settings().body_cap, bytes, "{text}");
    }
    for (text, per_mille) in [("1", 1000), ("0.25", 250), ("\"25%\"", 250), ("\"0.1 %\"", 1), ("\"0.5\"", 500)] {
        let settings = toml(&format!("circuit.ratio = {text}")).builder().resolve();
        assert_eq!(settings.circuit.unwrap().ratio.as_per_mille(), per_mille, "{text}");
    }
}

#[test]
fn a_part_is_left_out_by_false() {
    let text = "name = \"shop\"\nretry = false\ncircuit = false\nlimiter = false";
    let settings = toml(text).builder().resolve();
    assert!(settings.retry.is_none() && settings.circuit.is_none() && settings.limiter.is_none());
    assert!(toml(text).builder().build().is_ok());
}

#[test]
fn every_fault_of_a_file_is_named_in_one_pass() {
    let found = toml_errors(
        r#"
        preset = "standart"
        proxy_status = ""
        retrry = 3
        [timeouts]
        total = 30
        attempt = "soon"
        unbounded = true
        [retry]
        attempts = 0
        budget = 20
        hegding = "p95"
        [circuit]
        ratio = "120%"
        min_calls = 0
        slow_ratio = 0.5
        window = "1ms"
        probe = "health"
        [limiter]
        fixed = 10
        min = 2
        [topology]
        client_timeout = "1s"
        client_deadline = "1s"
        [error_page]
        contact = " "
        "#,
    );
    let expected = [
        ("preset", "did you mean `standard`?"),
        ("proxy_status", "set a token"),
        ("retrry", "did you mean `retry`?"),
        ("timeouts.total", "write \"30s\""),
        ("timeouts.attempt", "expected a duration"),
        ("retry.attempts", "from 1 to 10"),
        ("retry.budget", "expected a fraction"),
        ("retry.hegding", "did you mean `hedging`?"),
        ("circuit.ratio", "expected a fraction"),
        ("circuit.min_calls", "expected a whole number from 1"),
        ("circuit.slow_ratio", "set `slow_calls` as well"),
        ("circuit.probe", "expected a path such as"),
        ("circuit.window", "set a duration from \"1s\" to \"1h\""),
        ("limiter.fixed", "set either `fixed`, or `adaptive`, `min` and `max`"),
        ("topology.client_deadline", "set one of"),
        ("error_page.contact", "write a sentence"),
    ];
    for (setting, part) in expected {
        let line = found.iter().find(|line| line.starts_with(&format!("{setting}: ")));
        assert!(line.is_some_and(|line| line.contains(part)), "{setting}: {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

/// Any JSON, usually with known keys and likely values.
fn any_json() -> impl Strategy<Value = Json> {
    let words: Vec<String> = all_tables().iter().flat_map(|table| table.1).map(ToString::to_string).collect();
    let key = prop_oneof![9 => prop::sample::select(words), 1 => any::<String>()];
    let text = prop_oneof![any::<String>(), "[0-9.]{0,4} ?(ms|s|m|%|KiB|p95|off|none|)", "p[0-9.]{0,9}"];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        text.prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            4 => prop::collection::hash_map(key.clone(), inner, 0..6).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// A setting whose value usually has the right type.
fn any_setting() -> impl Strategy<Value = (String, String, Json)> {
    let all: Vec<(&str, &str)> =
        all_tables().iter().flat_map(|table| table.1.iter().map(|key| (table.0, *key))).collect();
    let value = prop_oneof![
        "[0-9]{1,12}(ms|s|m|h|us)".prop_map(Json::from),
        (0_u64..20).prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        any::<bool>().prop_map(Json::from),
        "(none|off|p95|standard|streaming|[ -~]{0,9})".prop_map(Json::from),
    ];
    (prop::sample::select(all), value).prop_map(|((table, key), value)| (table.to_owned(), key.to_owned(), value))
}

proptest! {
    #[test]
    fn no_value_and_no_text_causes_a_panic(value in any_json(), text in any::<String>()) {
        if let Ok(config) = serde_json::from_value::<UpstreamConfig>(value) {
            let _ = config.builder().build();
        }
        let _ = toml::from_str::<UpstreamConfig>(&text);
        let _ = serde_json::from_str::<UpstreamConfig>(&text);
    }

    #[test]
    fn any_settings_are_built_or_refused(settings in prop::collection::vec(any_setting(), 0..8)) {
        let mut root = json!({ "name": "shop" });
        for (table, key, value) in settings {
            if table.is_empty() {
                root[key] = value;
            } else if root[&table].is_object() || root[&table].is_null() {
                root[table][key] = value;
            }
        }
        let config: UpstreamConfig = serde_json::from_value(root).unwrap();
        match config.builder().build() {
            Ok(layer) => prop_assert!(!layer.handle().name().is_empty()),
            Err(error) => {
                prop_assert!(!error.errors().is_empty());
                prop_assert!(error.errors().iter().all(|error| !error.suggestion().is_empty()));
            }
        }
    }
}

#[test]
fn a_total_alone_in_a_file_is_accepted_without_a_finding() {
    for total in ["1s", "5s", "8s", "30s"] {
        let config: UpstreamConfig =
            toml::from_str(&format!("name = \"shop\"\n[timeouts]\ntotal = \"{total}\"")).unwrap();
        let settings = config.builder().resolve();
        let checked = super::super::validate::check("shop", &settings);
        assert!(
            checked.errors.is_empty() && checked.report.findings().is_empty(),
            "{:?} {}",
            checked.errors,
            checked.report
        );
    }
}
