use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::super::builder::UpstreamBuilder;
use super::tables::TABLES;
use super::*;

fn toml(text: &str) -> UpstreamConfig {
    toml::from_str(text).unwrap()
}

/// Why a text is not read.
fn unread(text: &str) -> String {
    toml::from_str::<UpstreamConfig>(text).unwrap_err().to_string()
}

/// What is wrong with a text that is read.
fn refused(text: &str) -> Vec<String> {
    let error = toml(&format!("name = \"shop\"\n{text}")).builder().build().unwrap_err();
    error.errors().iter().map(ToString::to_string).collect()
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const WHOLE: &str = r#"
    name = "payments"
    preset = "batch"
    proxy_status = "shop-edge"

    [timeouts]
    head = "1500ms"
    attempt = "2s"
    total = "8s"
    body_idle = "1m 30s"
    absolute = "none"
    unbounded = false

    [retry]
    attempts = 2
    pause = "10ms"
    longest_pause = "0.5s"
    longest_retry_after = "5s"
    body_cap = "64 KiB"
    budget = "10%"
    hedge = "p99"
    trust_idempotency_keys = true
    repeat_too_many_requests = true

    [circuit]
    consecutive = 3
    ratio = 0.25
    least_calls = 50
    window = "30s"
    pause = "2s"
    longest_pause = "20s"
    probe_limit = "3s"
    slow_calls = "1s"
    slow_ratio = "75%"

    [limiter]
    least = 4
    most = 64
    hold_upgrades = true

    [topology]
    caller_timeout = "10s"
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
fn everything_that_is_said_arrives() {
    let builder = toml(WHOLE).builder();
    assert_eq!(&*builder.name, "payments");
    let limits = builder.limits.limits().timeouts;
    assert_eq!((limits.response_head, limits.attempt, limits.total), (Some(ms(1500)), Some(ms(2000)), Some(ms(8000))));
    assert_eq!((limits.body_idle, limits.max_duration), (Some(ms(90_000)), None));
    let retry = builder.retry.as_ref().unwrap().settings();
    assert_eq!((retry.policy.attempts, retry.policy.base_backoff, retry.policy.max_backoff), (2, ms(10), ms(500)));
    assert_eq!((retry.policy.max_retry_after, retry.body_cap), (ms(5000), 64 * 1024));
    assert!(retry.policy.trusts_keys && retry.policy.repeats_too_many);
    assert!(retry.hedging.as_ref().is_some_and(|hedging| hedging.fixed().is_none()));
    let circuit = builder.policy.unwrap();
    assert_eq!((circuit.consecutive_failures, circuit.ratio.as_per_mille(), circuit.min_calls), (3, 250, 50));
    assert_eq!((circuit.window, circuit.open_duration, circuit.max_open_duration), (ms(30_000), ms(2000), ms(20_000)));
    assert_eq!(circuit.probe_timeout, ms(3000));
    assert_eq!(circuit.slow.map(|(longer, share)| (longer, share.as_per_mille())), Some((ms(1000), 750)));
    assert_eq!(builder.limiter.as_ref().unwrap().effective_bounds(), (4, 64));
    assert!(builder.page.is_some() && builder.found.is_empty());
    assert!(builder.build().is_ok());
}

#[test]
fn each_key_stands_in_the_docs_and_is_read() {
    let docs = include_str!("mod.rs");
    for (table, keys) in TABLES {
        for key in *keys {
            let name = table.trim_end_matches('.');
            let row = docs.lines().find(|line| line.starts_with(&format!("/// | `{name}`")));
            let row = if table.is_empty() { docs } else { row.unwrap() };
            assert!(row.contains(&format!("`{key}`")), "{table}{key} is not in the table");
            // a list is of no kind: whoever reads the key refuses it at its place
            let told = unread(&format!("{table}{key} = []"));
            assert!(told.contains(&format!("at `{table}{key}`")), "{told}");
        }
    }
}

#[test]
fn what_is_not_said_is_the_presets() {
    type Preset = fn(UpstreamBuilder) -> UpstreamBuilder;
    let presets: [(&str, Preset); 4] = [
        ("latency_critical", UpstreamBuilder::latency_critical),
        ("standard", UpstreamBuilder::standard),
        ("batch", UpstreamBuilder::batch),
        ("streaming", UpstreamBuilder::streaming),
    ];
    for (name, preset) in presets {
        let text = format!("name = \"a\"\npreset = \"{name}\"\n[timeouts]\n[retry]\n[circuit]\n[limiter]\n[topology]");
        let (read, built) = (toml(&text).builder(), preset(UpstreamBuilder::new("a")));
        assert_eq!(read.limits.limits().timeouts, built.limits.limits().timeouts);
        let (one, other) = (read.retry.as_ref().unwrap().settings(), built.retry.as_ref().unwrap().settings());
        assert_eq!(
            (one.policy, one.body_cap, one.hedging.is_some()),
            (other.policy, other.body_cap, other.hedging.is_some())
        );
        assert_eq!(format!("{:?}", read.policy), format!("{:?}", built.policy));
        assert_eq!(
            read.limiter.as_ref().unwrap().effective_bounds(),
            built.limiter.as_ref().unwrap().effective_bounds()
        );
        assert_eq!(read.topology, built.topology);
        assert!(read.page.is_none());
        assert!(read.build().is_ok());
    }
    let calm = toml("name = \"a\"\npreset = \"latency_critical\"\nretry.hedge = \"off\"").builder();
    assert!(calm.retry.as_ref().unwrap().settings().hedging.is_none());
    let fixed = toml("name = \"a\"\nretry.hedge = \"80ms\"").builder();
    assert_eq!(fixed.retry.as_ref().unwrap().settings().hedging.as_ref().unwrap().fixed(), Some(ms(80)));
}

#[test]
fn json_is_read_like_toml() {
    let text = json!({
        "name": "shop", "timeouts": { "head": "2s", "total": "30s" },
        "retry": { "body_cap": 1000, "budget": 1, "hedge": "0.1s" }, "limiter": { "fixed": 7 },
    });
    let builder = serde_json::from_value::<UpstreamConfig>(text.clone()).unwrap().builder();
    assert_eq!(builder.limits.limits().timeouts.response_head, Some(ms(2000)));
    assert_eq!(builder.retry.as_ref().unwrap().settings().body_cap, 1000);
    assert_eq!(builder.limiter.as_ref().unwrap().effective_bounds(), (7, 7));
    let again: UpstreamConfig = serde_json::from_slice(text.to_string().as_bytes()).unwrap();
    assert!(again.builder().build().is_ok());
}

#[test]
fn what_cannot_be_read_is_told_with_its_place_and_what_to_write() {
    for (text, parts) in [
        ("retry.atempts = 2", ["unknown key \"retry.atempts\"", "did you mean `attempts`?"].as_slice()),
        ("timeouts.body-idle = \"1s\"", &["did you mean `body_idle`?"]),
        ("breaker = 1", &["unknown key \"breaker\"", "known are name, preset"]),
        ("total = \"1s\"", &["`total` belongs to [timeouts]"]),
        ("[retry]\nname = \"a\"", &["`name` stands at the top"]),
        ("timeouts.head = 30", &["timeouts.head: 30 what? write \"30s\""]),
        ("timeouts.head = 1.5", &["timeouts.head: 1.5 what? write \"1.5s\""]),
        ("timeouts.head = \"30\"", &["timeouts.head: 30 what?"]),
        ("timeouts.head = \"soon\"", &["timeouts.head: \"soon\" is no duration", "\"1m 30s\""]),
        ("timeouts.head = true", &["boolean `true`", "a duration such as \"1500ms\", or \"none\" at `timeouts.head`"]),
        ("retry.pause = \"none\"", &["retry.pause: \"none\" is no duration"]),
        ("retry.attempts = \"three\"", &["string \"three\"", "a whole number at `retry.attempts`"]),
        ("retry.attempts = -1", &["integer `-1`", "a whole number at `retry.attempts`"]),
        ("retry.attempts = 2.0", &["floating point `2.0`", "a whole number at `retry.attempts`"]),
        ("retry.body_cap = \"64 Kib\"", &["retry.body_cap: \"64 Kib\" is no size", "64 KiB"]),
        ("retry.budget = \"a fifth\"", &["retry.budget: \"a fifth\" is no share", "20%"]),
        ("retry.hedge = \"p100\"", &["retry.hedge: \"p100\" is none of \"p50\" to \"p99.9\""]),
        ("retry.hedge = 95", &["retry.hedge: 95 what?"]),
        ("retry = false", &["boolean `false`", "in code, with `without_retry`) at `retry`"]),
        ("limiter = \"off\"", &["string \"off\"", "in code, with `without_limiter`) at `limiter`"]),
        ("timeouts.unbounded = \"yes\"", &["true or false at `timeouts.unbounded`"]),
        ("error_page.contact = 5", &["a text at `error_page.contact`"]),
        ("name = 1979-05-27", &["a text at `name`"]),
    ] {
        let told = unread(text);
        assert!(parts.iter().all(|part| told.contains(part)), "{text}: {told}");
    }
    let twice = serde_json::from_str::<UpstreamConfig>(r#"{"retry":{"attempts":2,"attempts":3}}"#).unwrap_err();
    assert!(twice.to_string().contains("retry.attempts is given twice"), "{twice}");
    let list = serde_json::from_str::<UpstreamConfig>("[]").unwrap_err();
    assert!(list.to_string().contains("a table with the settings of one upstream"), "{list}");
    let null = serde_json::from_str::<UpstreamConfig>(r#"{"timeouts":{"head":null}}"#).unwrap_err();
    assert!(null.to_string().contains("or \"none\" at `timeouts.head`"), "{null}");
}

#[test]
fn toml_shows_the_line() {
    let told = unread("name = \"shop\"\n[retry]\nattempts = \"three\"\n");
    assert!(told.contains("line 3") && told.contains("attempts = \"three\""), "{told}");
}

#[test]
fn all_that_is_not_meant_is_refused_at_once() {
    let found = refused(
        r#"
        preset = "standart"
        proxy_status = ""
        [timeouts]
        total = "30s"
        unbounded = true
        [retry]
        attempts = 0
        budget = 20
        [circuit]
        ratio = "120%"
        least_calls = 0
        slow_ratio = 0.5
        window = "1ms"
        [limiter]
        fixed = 10
        least = 2
        [topology]
        caller_timeout = "1s"
        caller_deadline = "1s"
        [error_page]
        contact = " "
        "#,
    );
    for (setting, part) in [
        ("preset", "set \"standard\""),
        ("proxy_status", "cannot stand in the field"),
        ("timeouts.unbounded", "set one of `unbounded` and `total`"),
        ("retry.attempts", "set a number from 1 to 10"),
        ("retry.budget", "20 is no share"),
        ("circuit.ratio", "1.2 is no share"),
        ("circuit.least_calls", "0 is out of range"),
        ("circuit.slow_ratio", "set `slow_calls` beside it"),
        ("circuit.window", "set a time from \"1s\" to \"1h\""),
        ("limiter.fixed", "set either `fixed`, or `least` and `most`"),
        ("topology.caller_deadline", "set one of"),
        ("error_page.contact", "it says nothing"),
    ] {
        let line = found.iter().find(|line| line.starts_with(&format!("{setting}: ")));
        assert!(line.is_some_and(|line| line.contains(part)), "{setting}: {found:#?}");
    }
    assert_eq!(refused("limiter = { least = 9, most = 3 }").len(), 1);
    assert_eq!(
        refused("limiter.least = 300"),
        ["limiter: from 300 to 200 is no range; set the lower bound first, at most the upper one"]
    );
}

/// Any JSON, with keys and texts among those that are known.
fn any_json() -> impl Strategy<Value = Json> {
    let words: Vec<String> = TABLES.iter().flat_map(|table| table.1).map(ToString::to_string).collect();
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

/// One setting of a kind that is read, as a rule.
fn any_setting() -> impl Strategy<Value = (String, String, Json)> {
    let all: Vec<(&str, &str)> = TABLES.iter().flat_map(|table| table.1.iter().map(|key| (table.0, *key))).collect();
    let value = prop_oneof![
        "[0-9]{1,12}(ms|s|m|h|us)".prop_map(Json::from),
        (0_u64..20).prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        any::<bool>().prop_map(Json::from),
        "(none|off|p95|standard|streaming|[ -~]{0,9})".prop_map(Json::from),
    ];
    (prop::sample::select(all), value)
        .prop_map(|((table, key), value)| (table.trim_end_matches('.').to_owned(), key.to_owned(), value))
}

proptest! {
    #[test]
    fn no_value_and_no_text_makes_it_panic(value in any_json(), text in any::<String>()) {
        if let Ok(config) = serde_json::from_value::<UpstreamConfig>(value) {
            let _ = config.builder().build();
        }
        let _ = toml::from_str::<UpstreamConfig>(&text);
        let _ = serde_json::from_str::<UpstreamConfig>(&text);
    }

    #[test]
    fn settings_that_are_read_are_built_or_refused(settings in prop::collection::vec(any_setting(), 0..8)) {
        let mut root = json!({ "name": "shop" });
        for (table, key, value) in settings {
            let mut with = root.clone();
            if table.is_empty() { with[key] = value } else { with[table][key] = value }
            // what is not read is left out, so that much is
            if serde_json::from_value::<UpstreamConfig>(with.clone()).is_ok() {
                root = with;
            }
        }
        let config: UpstreamConfig = serde_json::from_value(root).unwrap();
        match config.builder().build() {
            Ok(layer) => prop_assert!(!layer.handle().name().is_empty()),
            Err(error) => prop_assert!(!error.errors().is_empty()),
        }
    }
}
