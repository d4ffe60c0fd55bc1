//! Members from Kubernetes: the `EndpointSlice`s of a service, by kube's watcher.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tower_upstream::balance::{Member, MemberState};

/// Returns snapshots of the pods of a service, one at first and one after each change, for
/// `BalanceHandle::follow_snapshots`.
///
/// `port` is the name of the service's port, empty if the port has none. `zone` is the zone of the gateway, if it has
/// one; set it with `BalanceBuilder::zone` too.
pub fn members(
    client: Client,
    namespace: &str,
    service: &str,
    port: &str,
    zone: Option<&str>,
) -> impl Stream<Item = Result<Vec<Member>, watcher::Error>> + Send + use<> {
    let api: Api<EndpointSlice> = Api::namespaced(client, namespace);
    let config = watcher::Config::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut slices =
        Slices { known: BTreeMap::new(), listed: BTreeMap::new(), port: port.into(), zone: zone.map(Arc::from) };
    watcher(api, config).default_backoff().filter_map(move |event| {
        std::future::ready(event.map(|event| slices.on(event).then(|| slices.members())).transpose())
    })
}

struct Slices {
    known: BTreeMap<String, EndpointSlice>,
    /// The slices of a list that is not complete yet.
    listed: BTreeMap<String, EndpointSlice>,
    port: String,
    zone: Option<Arc<str>>,
}

impl Slices {
    /// Applies an event. Returns whether the members may have changed.
    fn on(&mut self, event: watcher::Event<EndpointSlice>) -> bool {
        let is_complete = !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(slice) => drop(self.listed.insert(slice.name_any(), slice)),
            watcher::Event::InitDone => self.known = std::mem::take(&mut self.listed),
            watcher::Event::Apply(slice) => drop(self.known.insert(slice.name_any(), slice)),
            watcher::Event::Delete(slice) => drop(self.known.remove(&slice.name_any())),
        }
        is_complete
    }

    fn members(&self) -> Vec<Member> {
        let mut members: BTreeMap<String, Member> = BTreeMap::new();
        for slice in self.known.values() {
            let ports = slice.ports.iter().flatten();
            let mut ports = ports.filter(|port| port.name.as_deref().unwrap_or_default() == self.port);
            let Some(port) = ports.find_map(|port| u16::try_from(port.port?).ok()) else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(state) = state(endpoint) else { continue };
                // clients use the first address only; slices of the type FQDN have no IP addresses
                let Some(ip) = endpoint.addresses.first().and_then(|ip| ip.parse().ok()) else { continue };
                let address = SocketAddr::new(ip, port);
                // IPv4 and IPv6 have separate slices: a pod with both is one member with two addresses
                let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
                let key = uid.unwrap_or_else(|| address.to_string());
                let member = members.entry(key).or_insert_with_key(|key| self.member(key, endpoint));
                if !member.addresses.contains(&address) {
                    member.addresses.push(address);
                }
                if state == MemberState::Draining {
                    member.state = state;
                }
            }
        }
        members.into_values().collect()
    }

    fn member(&self, key: &str, endpoint: &Endpoint) -> Member {
        let mut member = Member::new(key);
        // hints name the zones that should use the endpoint, in place of its own zone
        let hints = endpoint.hints.iter().flat_map(|hints| hints.for_zones.iter().flatten());
        let hints: Vec<_> = hints.map(|zone| zone.name.as_str()).collect();
        let own = self.zone.as_deref().filter(|own| hints.contains(own));
        member.zone = own.or(hints.first().copied()).or(endpoint.zone.as_deref()).map(Arc::from);
        member
    }
}

/// Returns the state of an endpoint; `None` if it serves no requests.
///
/// By default, `ready` is true, `serving` is as `ready`, and `terminating` is false.
fn state(endpoint: &Endpoint) -> Option<MemberState> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    match (conditions.serving.unwrap_or(ready), conditions.terminating.unwrap_or(false)) {
        (false, _) => None,
        (true, true) => Some(MemberState::Draining),
        (true, false) => ready.then_some(MemberState::Active),
    }
}
