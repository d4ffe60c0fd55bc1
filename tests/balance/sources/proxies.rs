//! Reverse proxies as endpoints, over sockets.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_upstream::balance::{Balance, Member, reverse_proxies};
use tower_upstream::body::TrackedUpload;
use tower_upstream::client::{DefaultConnector, ReverseProxy, TcpConnector, TlsConnector};
use tower_upstream::forward::{ForwardingRules, HostPolicy};
use tower_upstream::{BadGatewayCause, Failure};

use crate::support::{Upstream, app, tls_app};

type Pool = Balance<ReverseProxy<DefaultConnector, TrackedUpload<Body>>>;

fn pool(target: &str, members: impl IntoIterator<Item = Member>) -> Pool {
    let rules = ForwardingRules::new("edge").unwrap().host(HostPolicy::Upstream);
    let proxy = ReverseProxy::builder(target.parse().unwrap(), rules);
    Balance::builder("shop", reverse_proxies::<_, Body>(proxy)).members(members).build().unwrap()
}

async fn call(pool: &Pool) -> (u16, String, Option<BadGatewayCause>) {
    let request = Request::get("/host").header("host", "client.example").body(Body::empty()).unwrap();
    let response = pool.clone().oneshot(request).await.unwrap();
    let (status, cause) = (response.status().as_u16(), BadGatewayCause::of(&response));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned(), cause)
}

async fn upstream() -> Upstream {
    let host = |headers: HeaderMap| async move { headers["host"].to_str().unwrap().to_owned() };
    app(Router::new().route("/host", get(host))).await
}

#[tokio::test]
async fn a_member_with_addresses_gets_the_name_of_the_target() {
    let upstreams = [upstream().await, upstream().await];
    let members =
        upstreams.iter().map(|upstream| Member::new(upstream.address.to_string()).addresses([upstream.address]));
    let pool = pool("http://shop.invalid:8080", members);
    for _ in 0..10 {
        assert_eq!(call(&pool).await, (200, "shop.invalid:8080".to_owned(), None));
    }
    assert!(upstreams.iter().all(|upstream| upstream.accepted() > 0));
}

#[tokio::test]
async fn a_member_with_addresses_is_verified_by_the_name_of_the_target() {
    // its certificate is for `localhost`
    let (upstream, pem) = tls_app(Router::new().route("/host", get(|| async { "over TLS" })), &[]).await;
    let member = Member::new("a").addresses([upstream.address]);
    for (target, status) in [("https://localhost", 200), ("https://another.test", 502)] {
        let connector = TlsConnector::with_roots(TcpConnector::new(), pem.as_bytes()).unwrap();
        let proxy = ReverseProxy::builder(target.parse().unwrap(), ForwardingRules::new("edge").unwrap());
        let make = reverse_proxies::<_, Body>(proxy.connector(connector));
        let pool = Balance::builder("shop", make).members([member.clone()]).build().unwrap();
        assert_eq!(call(&pool).await.0, status, "{target}");
    }
}

#[tokio::test]
async fn a_member_with_a_dead_and_a_living_address_is_reached() {
    let upstream = upstream().await;
    let mut dead = upstream.address;
    dead.set_ip([127, 0, 0, 2].into());
    let pool = pool("shop.invalid", [Member::new("a").addresses([dead, upstream.address])]);
    assert_eq!(call(&pool).await.0, 200);
}

#[tokio::test]
async fn a_member_without_addresses_is_a_target_of_its_own() {
    let upstream = upstream().await;
    let key = format!("localhost:{}", upstream.address.port());
    for key in [key.clone(), format!("http://{key}/")] {
        let (status, host, _) = call(&pool("http://shop.invalid", [Member::new(key)])).await;
        assert_eq!((status, host), (200, format!("localhost:{}", upstream.address.port())));
    }
}

#[tokio::test]
async fn calls_to_a_member_whose_key_is_no_target_fail_before_anything_is_sent() {
    for key in ["", "ftp://files.example", "a b", "host:0", "host:99999", "user@host"] {
        let pool = pool("http://127.0.0.1:1", [Member::new(key)]);
        let request = Request::get("/").header("host", "client.example").body(Body::empty()).unwrap();
        let response = pool.oneshot(request).await.unwrap();
        let failure = Failure::of(&response).unwrap();
        assert_eq!((response.status().as_u16(), failure.cause()), (500, BadGatewayCause::InvalidTarget), "{key:?}");
        assert!(failure.detail().is_some() && failure.replay() == tower_upstream::cause::Replay::NotSent, "{key:?}");
    }
}
