//! A whole upstream from a file.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::Request;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_upstream::balance::{Health, MemberState};
use tower_upstream::breaker::State;
use tower_upstream::forward::ForwardingRules;
use tower_upstream::stack::{ConfigError, UpstreamConfig, UpstreamProxy};

use crate::support::upstream::app;

fn config(text: &str) -> UpstreamConfig {
    toml::from_str(text).unwrap()
}

fn build(text: &str) -> Result<UpstreamProxy<Body>, Vec<String>> {
    let built = config(text).proxy(ForwardingRules::new("edge-1").unwrap());
    built.map_err(|errors| errors.errors().iter().map(ToString::to_string).collect())
}

fn timeouts(upstream: &UpstreamProxy<Body>) -> String {
    format!("{:?}", upstream.handle().snapshot(Instant::now()).timeouts)
}

const ONE: &str = "[[endpoint]]\naddress = \"127.0.0.1:1\"\n";

#[tokio::test]
async fn every_fault_of_a_file_is_refused_with_its_reason() {
    for (text, expected) in [
        ("", "target: the upstream has neither a target nor endpoints"),
        ("endpoint = []", "endpoint: the list of members is empty"),
        ("endpoint = 3", "endpoint: found integer `3`: expected a list of tables"),
        ("endpoint = [3]", "endpoint: found integer `3`: expected a table"),
        ("endpoint = [{ weight = 1 }]", "endpoint[0].address: is missing"),
        ("endpoint = [{ address = \"a:1\" }, { address = \"a:1\" }]", "endpoint: two members have the key \"a:1\""),
        ("endpoint = [{ address = \"a:1\", weight = 0 }]", "endpoint: every active member has the weight 0"),
        (
            "endpoint = [{ address = \"a:1\", weight = -1 }]",
            "endpoint[0].weight: found integer `-1`: expected a whole number from 0 to 4294967295",
        ),
        (
            "endpoint = [{ address = \"a:1\", tier = 300 }]",
            "endpoint[0].tier: found integer `300`: expected a whole number from 0 to 255",
        ),
        ("endpoint = [{ address = \"a:1\", teir = 1 }]", "endpoint[0].teir: unknown key: did you mean `tier`?"),
        ("endpoint = [{ address = \"a:1\", state = \"off\" }]", "endpoint[0].state: unknown value \"off\""),
        (
            "endpoint = [{ address = \"a:1\", key = \"b\" }]",
            "endpoint[0].key: without a `target`, the address is the key",
        ),
        (
            "endpoint = [{ address = \"ftp://a\" }]",
            "endpoint[0].address: \"ftp://a\": the scheme is neither http nor https",
        ),
        ("endpoint = [{ address = \"a:0\" }]", "endpoint[0].address: \"a:0\": the port is not between 1 and 65535"),
        ("target = \"shop?x\"", "target: \"shop?x\" is not a target"),
        (
            "target = \"https://shop\"\nendpoint = [{ address = \"a:1\" }]",
            "endpoint[0].address: \"a:1\" is not an IP address",
        ),
        ("target = \"a:1\"\nbalance.panic = \"never\"", "balance.panic: unknown value \"never\""),
        ("target = \"a:1\"\nbalance.slow_start = 3", "balance.slow_start: missing unit: write \"3s\" or \"3ms\""),
        ("target = \"a:1\"\nhealth.interval = \"5s\"", "health: exactly one kind of check is needed"),
        (
            "target = \"a:1\"\nhealth.http = \"healthz\"",
            "health: the path \"healthz\" of the health check does not start",
        ),
        ("target = \"a:1\"\nhealth = { http = \"/\", tcp = true }", "health: exactly one kind of check is needed"),
        ("target = \"a:1\"\nhealth = { http = \"/\", status = \"2xx\" }", "health.status: found string \"2xx\""),
        ("target = \"a:1\"\nhealth = { http = \"/\", timeout = \"9s\" }", "health: "),
        ("target = \"a:1\"\ntls.ca = \"/nowhere\"", "tls.ca: \"/nowhere\" cannot be used: No such file"),
        ("target = \"a:1\"\npool.max_connections = 0", "pool.max_connections: found integer `0`"),
        ("target = \"a:1\"\npool.idel = \"1s\"", "pool.idel: unknown key: did you mean `idle`?"),
        ("target = \"a:1\"\nconnect.tcp = \"1\"", "connect.tcp: missing unit"),
        ("target = \"a:1\"\ntopology.pool_idle = \"1s\"", "topology.pool_idle: follows from `pool.idle`: remove it"),
        ("target = \"a:1\"\ntopology.connect = \"1s\"", "topology.connect: follows from `connect.tcp`: remove it"),
        ("target = \"a:1\"\ncircuit.window = \"1ms\"", "circuit.window: 1ms is out of range"),
        ("target = \"a:1\"\ntimeouts.body_idle = \"0s\"", "timeouts.body_idle: a timeout of 0 fails every call"),
    ] {
        let errors = build(&format!("name = \"shop\"\n{text}")).unwrap_err();
        assert!(errors.iter().any(|error| error.starts_with(expected)), "{text}:\n{errors:#?}");
        assert_eq!(errors.len(), 1, "{text}:\n{errors:#?}");
    }
    assert!(build(ONE).unwrap_err()[0].starts_with("name:"));
}

#[tokio::test]
async fn a_table_that_only_a_whole_upstream_has_is_refused_where_the_program_brings_its_client() {
    let text = "name = \"shop\"\ntarget = \"a:1\"\nendpoint = []\nbalance.zone = \"a\"\npool.idle = \"1s\"";
    let errors = config(text).builder().build().unwrap_err();
    let settings: Vec<_> = errors.errors().iter().map(ConfigError::setting).collect();
    assert_eq!(settings, ["target", "pool", "endpoint", "balance"]);
}

#[tokio::test]
async fn the_topology_follows_from_the_connections() {
    // pooled connections that are kept longer than the upstream keeps them
    let text = "name = \"shop\"\ntarget = \"a:1\"\npool.idle = \"10s\"\ntopology.upstream_keep_alive = \"5s\"";
    let errors = build(text).unwrap_err();
    assert!(errors[0].contains("10 s") && errors[0].contains("5 s"), "{errors:?}");
}

#[tokio::test]
async fn endpoints_are_read_with_everything_they_have() {
    let text = "name = \"shop\"\ntarget = \"http://shop.test\"\n[[endpoint]]\naddress = \"127.0.0.1:1\"\nkey = \"pod-1\"\n\
                weight = 3\ntier = 1\nzone = \"a\"\ngroup = \"green\"\nstate = \"draining\"\n";
    let shop = build(text).unwrap();
    let snapshot = shop.endpoints().snapshot(Instant::now());
    let member = &snapshot.endpoints[0].member;
    assert_eq!((&*member.key, member.weight, member.tier), ("pod-1", 3, 1));
    assert_eq!((member.zone.as_deref(), member.group.as_deref()), (Some("a"), Some("green")));
    assert_eq!((member.state, &*member.addresses), (MemberState::Draining, &["127.0.0.1:1".parse().unwrap()][..]));
}

#[tokio::test]
async fn a_call_goes_to_one_of_the_endpoints() {
    let served = app(Router::new().fallback(|| async { "hello" })).await;
    let shop = build(&format!("name = \"shop\"\nendpoint = [{{ address = \"{}\" }}]", served.address)).unwrap();
    let response = shop
        .service()
        .oneshot(Request::get("/").header("host", "shop.test").body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
}

#[tokio::test]
async fn endpoints_are_checked_as_the_file_says() {
    let served = app(Router::new().route("/healthz", get(|| async { "drain" }))).await;
    let text =
        format!("name = \"shop\"\nendpoint = [{{ address = \"{}\" }}]\nhealth.http = \"/healthz\"", served.address);
    let shop = build(&text).unwrap();
    let health = || shop.endpoints().snapshot(Instant::now()).endpoints[0].health;
    while health() == Health::Unknown {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(health(), Health::Draining);
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_applied_and_circuits_stay() {
    let first = "name = \"shop\"\nendpoint = [{ address = \"a:1\" }, { address = \"b:1\" }]\ntimeouts.total = \"20s\"";
    let shop = build(first).unwrap();
    shop.endpoints().circuit("a:1").unwrap().hold_open();
    let second = "name = \"shop\"\nendpoint = [{ address = \"a:1\", weight = 2 }, { address = \"c:1\" }]\n\
                  timeouts.total = \"10s\"\nretry.attempts = 2\ncircuit.consecutive_failures = 9";
    shop.apply(config(second)).unwrap();
    let snapshot = shop.endpoints().snapshot(Instant::now());
    let keys: Vec<_> =
        snapshot.endpoints.iter().map(|endpoint| (&*endpoint.member.key, endpoint.member.weight)).collect();
    assert_eq!(keys, [("a:1", 2), ("c:1", 1)]);
    assert_eq!(snapshot.endpoints[0].circuit.as_ref().unwrap().state, State::HeldOpen);
    assert!(timeouts(&shop).contains("total: Some(10s)"), "{}", timeouts(&shop));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_applied_changes_nothing() {
    let first = "name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\ntimeouts.total = \"20s\"";
    let shop = build(first).unwrap();
    for (second, setting) in [
        ("name = \"other\"\nendpoint = [{ address = \"a:1\" }]\ntimeouts.total = \"10s\"", "name"),
        ("name = \"shop\"\ntarget = \"a:1\"\ntimeouts.total = \"10s\"", "target"),
        ("name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\nconnect.tcp = \"2s\"", "connect"),
        ("name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\npool.idle = \"1s\"", "pool"),
        ("name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\nbalance.zone = \"a\"", "balance"),
        ("name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\nhealth.http = \"/\"", "health"),
        ("name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\ncircuit = false", "circuit"),
        ("name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\ncircuit.probe = \"/health\"", "circuit"),
        ("name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\nlimiter.fixed = 9", "limiter"),
        ("name = \"shop\"\nendpoint = [{ address = \"a:1\" }]\nretry = false", "retry"),
        ("name = \"shop\"\nendpoint = []\ntimeouts.total = \"10s\"", "endpoint"),
        ("name = \"shop\"\nendpoint = [{ address = \"b:1\" }]\ntimeouts.body_idle = \"0s\"", "timeouts.body_idle"),
    ] {
        let errors = shop.apply(config(second)).unwrap_err();
        assert_eq!(errors.errors()[0].setting(), setting, "{second}: {errors}");
        let snapshot = shop.handle().snapshot(Instant::now());
        assert!(timeouts(&shop).contains("total: Some(20s)"), "{second}");
        assert_eq!(&*snapshot.pool.unwrap().endpoints[0].member.key, "a:1");
    }
}
