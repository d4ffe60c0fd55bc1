//! Members from etcd: each server registers under a prefix with a lease, and a gateway watches the prefix.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, Error, EventType, GetOptions, KeyValue, PutOptions, WatchOptions, WatchStream,
};
use futures_util::{Stream, stream};
use tokio::time::sleep;
use tower_upstream::balance::{Member, MemberState};

/// Returns snapshots of the members under a prefix, one at first and one after each change, for
/// `BalanceHandle::follow_snapshots`.
///
/// After an error, the next poll lists and watches again. The pool pauses before it polls.
pub fn members(etcd: &str, prefix: &str) -> impl Stream<Item = Result<Vec<Member>, Error>> + Send + use<> {
    let registry = Registry { etcd: etcd.into(), prefix: prefix.into(), watch: None, known: BTreeMap::new() };
    stream::unfold(registry, async |mut registry| {
        let members = registry.next().await;
        if members.is_err() {
            registry.watch = None;
        }
        Some((members, registry))
    })
}

struct Registry {
    etcd: String,
    prefix: String,
    watch: Option<WatchStream>,
    /// By the key in etcd.
    known: BTreeMap<Vec<u8>, Member>,
}

impl Registry {
    async fn next(&mut self) -> Result<Vec<Member>, Error> {
        match &mut self.watch {
            None => self.list().await?,
            Some(watch) => {
                let response = watch.message().await?.ok_or_else(|| Error::WatchError("the watch has ended".into()))?;
                if response.canceled() {
                    return Err(Error::WatchError(response.cancel_reason().to_owned()));
                }
                for event in response.events() {
                    match (event.event_type(), event.kv()) {
                        (EventType::Put, Some(entry)) => self.add(&entry.clone()),
                        (EventType::Delete, Some(entry)) => drop(self.known.remove(entry.key())),
                        (_, None) => {}
                    }
                }
            }
        }
        Ok(self.known.values().cloned().collect())
    }

    async fn list(&mut self) -> Result<(), Error> {
        let mut client = connect(&self.etcd).await?;
        let found = client.get(&*self.prefix, Some(GetOptions::new().with_prefix())).await?;
        self.known.clear();
        found.kvs().iter().for_each(|entry| self.add(entry));
        // the watch begins with the revision after the list, so that no change is missed
        let revision = found.header().map_or(0, |header| header.revision() + 1);
        let options = WatchOptions::new().with_prefix().with_start_revision(revision);
        self.watch = Some(client.watch(&*self.prefix, Some(options)).await?);
        Ok(())
    }

    /// Adds an entry. An invalid one is left out, so that it does not keep the others from being used.
    fn add(&mut self, entry: &KeyValue) {
        let text = entry.key_str().ok().zip(entry.value_str().ok());
        let member = text.and_then(|(key, value)| member(key.strip_prefix(&self.prefix)?, value));
        match member {
            Some(member) => drop(self.known.insert(entry.key().to_vec(), member)),
            None => drop(self.known.remove(entry.key())),
        }
    }
}

/// Reads an entry, such as `10.0.0.7:80` = `weight=2 zone=eu-1a draining`.
fn member(address: &str, value: &str) -> Option<Member> {
    let address: SocketAddr = address.parse().ok()?;
    value.split_whitespace().try_fold(Member::new(address.to_string()).addresses([address]), |member, word| {
        Some(match word.split_once('=') {
            None if word == "draining" => member.state(MemberState::Draining),
            Some(("weight", weight)) => member.weight(weight.parse().ok()?),
            Some(("zone", zone)) => member.zone(zone),
            _ => return None,
        })
    })
}

/// Registers a server until the future is dropped; the entry expires `ttl` (whole seconds, at least 2) after that.
///
/// It registers again after each error, also if etcd has lost the entry.
pub async fn register(etcd: String, prefix: String, address: SocketAddr, value: String, ttl: Duration) -> Infallible {
    loop {
        if let Err(error) = keep_registered(&etcd, &format!("{prefix}{address}"), &value, ttl).await {
            eprintln!("{address} is not registered: {error}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn keep_registered(etcd: &str, key: &str, value: &str, ttl: Duration) -> Result<(), Error> {
    let mut client = connect(etcd).await?;
    let lease = client.lease_grant(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX), None).await?.id();
    client.put(key, value, Some(PutOptions::new().with_lease(lease))).await?;
    let (mut keeper, mut renewals) = client.lease_keep_alive(lease).await?;
    loop {
        sleep(ttl / 3).await;
        keeper.keep_alive().await?;
        match renewals.message().await? {
            Some(renewal) if renewal.ttl() > 0 => {}
            _ => return Err(Error::LeaseKeepAliveError("the lease has expired".into())),
        }
    }
}

async fn connect(etcd: &str) -> Result<Client, Error> {
    let options = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(1))
        // a watch may be silent for hours: only PING detects a dead connection
        .with_keep_alive(Duration::from_secs(5), Duration::from_secs(2))
        .with_require_leader(true);
    Client::connect([etcd], Some(options)).await
}
