//! Members from DNS: the addresses of a name, or SRV records, by hickory-resolver.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::RData;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::task::JoinHandle;
use tower::Service;
use tower_upstream::balance::{BalanceHandle, Member};
use tower_upstream::client::Target;

/// Follows the A and AAAA records of the target's host: each address is an endpoint.
pub fn follow_addresses(pool: &BalanceHandle, target: &Target, resolver: Arc<TokioResolver>) -> JoinHandle<()> {
    pool.follow_dns_with(target, Hickory(resolver))
}

/// Follows SRV records: each record is an endpoint with the addresses of its target. Priorities become tiers.
pub fn follow_srv(pool: &BalanceHandle, name: &str, every: Duration, resolver: Arc<TokioResolver>) -> JoinHandle<()> {
    let name: Arc<str> = name.into();
    pool.poll_source(every, move || srv(name.clone(), resolver.clone()))
}

async fn srv(name: Arc<str>, resolver: Arc<TokioResolver>) -> Result<Vec<Member>, NetError> {
    let found = resolver.srv_lookup(&*name).await?;
    let mut records: Vec<_> = found
        .answers()
        .iter()
        .filter_map(|record| if let RData::SRV(srv) = &record.data { Some(srv) } else { None })
        .collect();
    records.sort_by_key(|srv| srv.priority);
    let mut priorities: Vec<_> = records.iter().map(|srv| srv.priority).collect();
    priorities.dedup();
    let mut members = Vec::with_capacity(records.len());
    for srv in records {
        let addresses = resolver.lookup_ip(srv.target.clone()).await?;
        let tier = priorities.iter().position(|priority| *priority == srv.priority).unwrap_or_default();
        let key = format!("{}:{}", srv.target.to_string().trim_end_matches('.'), srv.port);
        let member = Member::new(key)
            .addresses(addresses.iter().map(|ip| SocketAddr::new(ip, srv.port)))
            // RFC 2782: a record of weight 0 is used seldom, but it is used
            .weight(u32::from(srv.weight).max(1))
            .tier(u8::try_from(tier).unwrap_or(u8::MAX));
        members.push(member);
    }
    Ok(members)
}

/// hickory's resolver as a tower service, as this crate and hyper-util take it. It caches for the TTL.
#[derive(Clone)]
struct Hickory(Arc<TokioResolver>);

impl Service<Name> for Hickory {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = NetError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NetError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NetError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.lookup_ip(name.as_str()).await?;
            Ok(found.iter().map(|ip| SocketAddr::new(ip, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}
