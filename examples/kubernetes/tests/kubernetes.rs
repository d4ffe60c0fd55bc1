//! A scripted API server: pods are added, terminate and are killed, and the API server is down for a while.

#[path = "../../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use support::{Server, Traffic, gateway, keys, problem, until};
use tokio::sync::mpsc::{self, UnboundedSender};
use tower::service_fn;
use tower_upstream::balance::{BalanceHandle, MemberState};

/// The part of an API server that a watch of slices needs.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    is_down: bool,
    version: u64,
    slices: BTreeMap<String, Value>,
    watches: Vec<UnboundedSender<Result<Frame<Bytes>, Infallible>>>,
}

type Streamed = UnsyncBoxBody<Bytes, Infallible>;

impl Api {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        kube::Client::new(service_fn(move |request| std::future::ready(api.respond(&request))), "default")
    }

    fn respond(&self, request: &Request<Body>) -> io::Result<Response<Streamed>> {
        assert_eq!(request.uri().path(), "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices");
        let query = request.uri().query().unwrap_or_default();
        assert!(query.contains("labelSelector=kubernetes.io%2Fservice-name%3Dshop"), "{query}");
        let mut state = self.0.lock().unwrap();
        if state.is_down {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (sender, mut frames) = mpsc::unbounded_channel();
        if !query.contains("watch=") {
            let items: Vec<_> = state.slices.values().collect();
            let metadata = json!({"resourceVersion": state.version.to_string()});
            let list = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": metadata, "items": items});
            let _ = sender.send(Ok(Frame::data(list.to_string().into())));
        } else if query.contains(&format!("resourceVersion={}", state.version)) {
            state.watches.push(sender);
        } else {
            // the changes after that version are no longer known
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410});
            let event = json!({"type": "ERROR", "object": status});
            let _ = sender.send(Ok(Frame::data(format!("{event}\n").into())));
        }
        let frames = stream::poll_fn(move |cx| frames.poll_recv(cx));
        Ok(Response::new(UnsyncBoxBody::new(StreamBody::new(frames))))
    }

    /// Adds or replaces a slice.
    fn apply(&self, name: &str, family: &str, port: u16, endpoints: &[Value]) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": state.version.to_string()},
            "addressType": family,
            "ports": [{"name": "http", "port": port}, {"name": "metrics", "port": 9}],
            "endpoints": endpoints,
        });
        let event = json!({"type": "MODIFIED", "object": slice});
        state.slices.insert(name.to_owned(), slice);
        state.watches.retain(|watch| watch.send(Ok(Frame::data(format!("{event}\n").into()))).is_ok());
    }

    fn set_down(&self, is_down: bool) {
        let mut state = self.0.lock().unwrap();
        state.is_down = is_down;
        state.watches.clear();
    }
}

fn pod(uid: &str, ip: &str, conditions: &Value) -> Value {
    json!({"addresses": [ip], "conditions": conditions, "zone": "a", "targetRef": {"kind": "Pod", "uid": uid},
        "hints": {"forZones": [{"name": if uid == "first" { "b" } else { "a" }}]}})
}

fn state(pool: &BalanceHandle, key: &str) -> Option<MemberState> {
    pool.members().borrow().iter().find(|member| &*member.key == key).map(|member| member.state)
}

#[tokio::test]
async fn the_pods_of_a_service_are_followed_and_nothing_is_lost() {
    // a slice has one port for all its endpoints
    let first = Server::at("127.0.0.2:0".parse().unwrap()).await;
    let port = first.address.port();
    let others = ["127.0.0.3", "127.0.0.4", "127.0.0.5"].map(|ip| Server::at(format!("{ip}:{port}").parse().unwrap()));
    let [second, third, fourth] = others;
    let (second, third, fourth) = (second.await, third.await, fourth.await);
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let gone = json!({"ready": false, "serving": false, "terminating": true});

    let api = Api::default();
    api.apply("shop-4", "IPv4", port, &[pod("first", "127.0.0.2", &ready), pod("second", "127.0.0.3", &ready)]);
    api.apply("shop-6", "IPv6", port, &[pod("second", "::1", &ready)]);
    let (gateway, pool) = gateway();
    pool.follow_snapshots(kubernetes::members(api.client(), "default", "shop", "http", Some("b")));
    until("the pods", || keys(&pool).len() == 2).await;
    let members = pool.members().borrow().clone();
    assert_eq!((&*members[1].key, members[1].addresses.len(), members[1].weight), ("second", 2, 1));
    assert_eq!((members[0].zone.as_deref(), members[1].zone.as_deref()), (Some("b"), Some("a")));
    let traffic = Traffic::start(&gateway);
    traffic.reaches(first.address).await;

    // a pod is added, and one that is not ready is not
    let pods = |first: &Value, second: &Value| {
        [
            pod("first", "127.0.0.2", first),
            pod("second", "127.0.0.3", second),
            pod("third", "127.0.0.4", &ready),
            pod("starting", "127.0.0.9", &json!({"ready": false})),
        ]
    };
    api.apply("shop-4", "IPv4", port, &pods(&ready, &ready));
    traffic.reaches(third.address).await;
    assert_eq!(keys(&pool), ["first", "second", "third"]);

    // one terminates: it finishes its calls and is removed
    api.apply("shop-4", "IPv4", port, &pods(&leaving, &ready));
    until("it drains", || state(&pool, "first") == Some(MemberState::Draining)).await;
    api.apply("shop-4", "IPv4", port, &pods(&gone, &ready));
    until("it has gone", || state(&pool, "first").is_none()).await;
    first.leave().await;

    // one is killed, and its slice changes two seconds later
    second.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    api.apply("shop-6", "IPv6", port, &[]);
    api.apply("shop-4", "IPv4", port, &pods(&gone, &gone));
    until("it has gone", || keys(&pool) == ["third"]).await;
    traffic.check("after a pod was killed");

    // the API server is down, and has no old versions after its restart
    api.set_down(true);
    until("the watch has failed", || !problem(&pool).is_empty()).await;
    api.apply("shop-4", "IPv4", port, &[pod("third", "127.0.0.4", &ready), pod("fourth", "127.0.0.5", &ready)]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    traffic.reaches(third.address).await;
    assert_eq!(keys(&pool), ["third"]);
    api.set_down(false);
    traffic.reaches(fourth.address).await;
    assert_eq!((keys(&pool).len(), problem(&pool)), (2, String::new()));

    // without a ready pod, the pool keeps its members
    api.apply("shop-4", "IPv4", port, &[pod("third", "127.0.0.4", &json!({"ready": false}))]);
    until("the list is empty", || !problem(&pool).is_empty()).await;
    traffic.reaches(third.address).await;
    assert!(traffic.check("in all") > 1000);
}
