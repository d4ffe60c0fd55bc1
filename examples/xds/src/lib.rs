//! Members from an xDS control plane: the endpoints of a cluster (EDS), by grpc-rust's `xds-client`.

use std::net::SocketAddr;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, HealthStatus, address};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use futures_util::{FutureExt, Stream, stream};
use prost::Message;
use tower_upstream::balance::{Member, MemberState};
use xds_client::resource::TypeUrl;
use xds_client::{
    ClientConfig, Error, Node, ProstCodec, Resource, ResourceEvent, TokioRuntime, TonicTransportBuilder, XdsClient,
};

/// Returns snapshots of the endpoints of a cluster, one at first and one after each change, for
/// `BalanceHandle::follow_snapshots`.
///
/// `server` is the control plane, such as `http://127.0.0.1:18000`; `node` names this gateway to it.
pub fn members(
    server: &str,
    node: &str,
    cluster: &str,
) -> impl Stream<Item = Result<Vec<Member>, Error>> + Send + use<> {
    let config = ClientConfig::new(Node::new("tower-upstream", "0").with_id(node), server);
    let cluster = cluster.to_owned();
    let connected = async move {
        let client = XdsClient::builder(config, TonicTransportBuilder::new(), ProstCodec, TokioRuntime).build();
        let watcher = client.watch::<Assignment>(cluster).await;
        stream::unfold((client, watcher), async |(client, mut watcher)| {
            let members = match watcher.next().await? {
                ResourceEvent::ResourceChanged { result, .. } => result.map(|assignment| assignment.0.clone()),
                // the control plane cannot be reached, or a resource is invalid: the previous one stays
                ResourceEvent::AmbientError { error, .. } => Err(error),
            };
            Some((members, (client, watcher)))
        })
    };
    connected.flatten_stream()
}

/// The members of a `ClusterLoadAssignment`.
struct Assignment(Vec<Member>);

impl Resource for Assignment {
    type Message = ClusterLoadAssignment;

    const TYPE_URL: TypeUrl = TypeUrl::new("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    const ALL_RESOURCES_REQUIRED_IN_SOTW: bool = false;

    fn deserialize(bytes: Bytes) -> xds_client::Result<ClusterLoadAssignment> {
        Ok(ClusterLoadAssignment::decode(bytes)?)
    }

    fn name(message: &ClusterLoadAssignment) -> &str {
        &message.cluster_name
    }

    /// An error is reported to the control plane (NACK).
    fn validate(message: ClusterLoadAssignment) -> xds_client::Result<Self> {
        let mut members = Vec::new();
        for locality in &message.endpoints {
            let of = |endpoint: &LbEndpoint| endpoint.load_balancing_weight.map_or(1, |weight| u64::from(weight.value));
            let sum = locality.lb_endpoints.iter().map(of).sum::<u64>().max(1);
            let share = locality.load_balancing_weight.map_or(1, |weight| u64::from(weight.value));
            let zone = locality.locality.as_ref().map(|locality| &*locality.zone).filter(|zone| !zone.is_empty());
            let tier = u8::try_from(locality.priority)
                .map_err(|_| Error::Validation(format!("priority {} is above 255", locality.priority)))?;
            for endpoint in &locality.lb_endpoints {
                let state = match HealthStatus::try_from(endpoint.health_status) {
                    Ok(HealthStatus::Draining) => MemberState::Draining,
                    Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) | Err(_) => continue,
                    Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => MemberState::Active,
                };
                let addresses = addresses(endpoint)?;
                // the locality's share of its tier, divided by the weights of its endpoints
                let weight = share.saturating_mul(1000).saturating_mul(of(endpoint)) / sum;
                let mut member = Member::new(addresses[0].to_string()).addresses(addresses).tier(tier).state(state);
                member.weight = u32::try_from(weight).unwrap_or(u32::MAX).max(1);
                member.zone = zone.map(Into::into);
                members.push(member);
            }
        }
        Ok(Self(members))
    }
}

/// The addresses of an endpoint, at least one.
fn addresses(endpoint: &LbEndpoint) -> xds_client::Result<Vec<SocketAddr>> {
    let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
        return Err(Error::Validation("an endpoint has no address".into()));
    };
    let additional = endpoint.additional_addresses.iter().map(|additional| additional.address.as_ref());
    std::iter::once(endpoint.address.as_ref()).chain(additional).map(socket_address).collect()
}

fn socket_address(address: Option<&Address>) -> xds_client::Result<SocketAddr> {
    let invalid = || Error::Validation(format!("not an IP address with a port: {address:?}"));
    match address.and_then(|address| address.address.as_ref()) {
        Some(address::Address::SocketAddress(socket)) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => Ok(SocketAddr::new(
                socket.address.parse().map_err(|_| invalid())?,
                u16::try_from(port).map_err(|_| invalid())?,
            )),
            _ => Err(invalid()),
        },
        _ => Err(invalid()),
    }
}
