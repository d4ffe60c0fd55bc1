//! A control plane in this process: endpoints are added, drained and killed, and the control plane is down for a while.

#[path = "../../support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, HealthStatus, Locality, SocketAddress, address};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::{Any, UInt32Value};
use futures_util::{Stream, stream};
use prost::Message;
use support::{Server, Traffic, gateway, keys, problem, until};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, UnboundedSender};
use tonic::{Request, Response, Status, Streaming};
use tower_upstream::balance::MemberState;

const TYPE: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Sends the endpoints of the cluster `shop` to each client that subscribes to them.
#[derive(Clone, Default)]
struct ControlPlane(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    endpoints: Vec<LocalityLbEndpoints>,
    clients: Vec<UnboundedSender<Result<DiscoveryResponse, Status>>>,
    nacks: Vec<String>,
}

impl State {
    fn response(&self) -> DiscoveryResponse {
        let endpoints = self.endpoints.clone();
        let assignment = ClusterLoadAssignment { cluster_name: "shop".into(), endpoints, ..Default::default() };
        let (version_info, nonce) = (self.version.to_string(), self.version.to_string());
        let resources = vec![Any { type_url: TYPE.into(), value: assignment.encode_to_vec() }];
        DiscoveryResponse { version_info, nonce, resources, type_url: TYPE.into(), ..Default::default() }
    }
}

impl ControlPlane {
    fn set(&self, endpoints: Vec<LocalityLbEndpoints>) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        state.endpoints = endpoints;
        let response = state.response();
        state.clients.retain(|client| client.send(Ok(response.clone())).is_ok());
    }

    /// Serves on a runtime of its own, whose shutdown closes all connections.
    fn start(&self, address: SocketAddr) -> Runtime {
        let runtime = Runtime::new().unwrap();
        let service = AggregatedDiscoveryServiceServer::new(self.clone());
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve(address));
        runtime
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for ControlPlane {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Responses<DiscoveryResponse>>, Status> {
        let (sender, mut responses) = mpsc::unbounded_channel();
        let (state, mut requests) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let mut state = state.lock().unwrap();
                if let Some(error) = request.error_detail {
                    state.nacks.push(error.message);
                } else if request.response_nonce.is_empty() {
                    let _ = sender.send(Ok(state.response()));
                    state.clients.push(sender.clone());
                }
            }
        });
        Ok(Response::new(Box::pin(stream::poll_fn(move |cx| responses.poll_recv(cx)))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses<DeltaDiscoveryResponse>>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

fn endpoint(address: &str, port: u16, status: HealthStatus) -> LbEndpoint {
    let port_specifier = Some(PortSpecifier::PortValue(port.into()));
    let socket = SocketAddress { address: address.into(), port_specifier, ..Default::default() };
    let address = Some(Address { address: Some(address::Address::SocketAddress(socket)) });
    let endpoint = HostIdentifier::Endpoint(Endpoint { address, ..Default::default() });
    LbEndpoint { health_status: status.into(), host_identifier: Some(endpoint), ..Default::default() }
}

/// Servers of one zone and priority.
fn locality(zone: &str, priority: u32, weight: u32, servers: &[(&Server, HealthStatus)]) -> LocalityLbEndpoints {
    let endpoints = servers.iter().map(|(server, status)| endpoint("127.0.0.1", server.address.port(), *status));
    LocalityLbEndpoints {
        locality: Some(Locality { zone: zone.into(), ..Default::default() }),
        lb_endpoints: endpoints.collect(),
        load_balancing_weight: Some(UInt32Value { value: weight }),
        priority,
        ..Default::default()
    }
}

#[tokio::test]
async fn the_endpoints_of_a_cluster_are_followed_and_nothing_is_lost() {
    use HealthStatus::{Draining, Healthy, Unhealthy};
    let [first, second, third, fallback] =
        [Server::start().await, Server::start().await, Server::start().await, Server::start().await];
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plane = ControlPlane::default();
    let last = locality("c", 1, 1, &[(&fallback, Healthy)]);
    plane.set(vec![locality("a", 0, 3, &[(&first, Healthy), (&second, Healthy)]), last.clone()]);
    let runtime = plane.start(port);
    let (gateway, pool) = gateway();
    pool.follow_snapshots(xds::members(&format!("http://{port}"), "gateway-1", "shop"));
    until("the endpoints", || keys(&pool).len() == 3).await;
    let traffic = Traffic::start(&gateway);
    traffic.reaches(first.address).await;
    let member = |server: &Server| {
        let members = pool.members().borrow().clone();
        members.iter().find(|member| *member.key == server.address.to_string()).cloned()
    };
    let found = [&first, &fallback].map(|server| member(server).unwrap());
    assert_eq!(found.each_ref().map(|member| (member.weight, member.tier)), [(1500, 0), (1000, 1)]);
    assert_eq!(found.each_ref().map(|member| member.zone.as_deref()), [Some("a"), Some("c")]);

    // one is added, in another locality, and one that is unhealthy is not
    let other = locality("b", 0, 1, &[(&third, Healthy), (&fallback, Unhealthy)]);
    plane.set(vec![locality("a", 0, 3, &[(&first, Healthy), (&second, Healthy)]), other.clone(), last.clone()]);
    traffic.reaches(third.address).await;

    // one drains and is removed
    plane.set(vec![locality("a", 0, 3, &[(&first, Draining), (&second, Healthy)]), other.clone(), last.clone()]);
    until("it drains", || member(&first).is_some_and(|member| member.state == MemberState::Draining)).await;
    plane.set(vec![locality("a", 0, 3, &[(&second, Healthy)]), other.clone(), last.clone()]);
    until("it has gone", || member(&first).is_none()).await;
    first.leave().await;

    // one is killed, and the control plane removes it two seconds later
    let address = second.address.to_string();
    second.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    plane.set(vec![other.clone(), last.clone()]);
    until("it has gone", || !keys(&pool).contains(&address)).await;
    traffic.check("after a server was killed");

    // an invalid assignment is refused, and the previous one stays
    let mut unusable = last.clone();
    unusable.lb_endpoints.push(endpoint("not an address", 80, Healthy));
    plane.set(vec![unusable]);
    until("it is refused", || !plane.0.lock().unwrap().nacks.is_empty()).await;
    until("it is reported", || problem(&pool).contains("not an IP address")).await;

    plane.set(vec![other.clone(), last.clone()]);
    until("the next one is accepted", || problem(&pool).is_empty()).await;

    // the control plane is down, and returns
    runtime.shutdown_background();
    tokio::time::sleep(Duration::from_secs(3)).await;
    traffic.reaches(third.address).await;
    assert_eq!(keys(&pool).len(), 2);
    let fifth = Server::start().await;
    plane.set(vec![other, last, locality("a", 0, 3, &[(&fifth, Healthy)])]);
    let runtime = plane.start(port);
    traffic.reaches(fifth.address).await;
    assert_eq!((keys(&pool).len(), problem(&pool)), (3, String::new()));
    assert!(traffic.check("in all") > 1000);
    runtime.shutdown_background();
}
