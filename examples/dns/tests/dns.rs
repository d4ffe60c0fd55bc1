//! A DNS server in this process: endpoints are added, removed and killed, and the DNS server falls silent.

#[path = "../../support/mod.rs"]
mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record};
use support::{Server, Traffic, gateway, keys, problem, until};
use tokio::net::UdpSocket;
use tower_upstream::client::Target;

/// The responses of the DNS server; `None` if it does not respond.
type Zone = Arc<Mutex<Option<Vec<Record>>>>;

/// Starts a DNS server with this zone, and returns a resolver that asks it.
async fn dns(zone: Zone) -> Arc<TokioResolver> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut response = Message::response(query.metadata.id, query.metadata.op_code);
            response.metadata.recursion_available = true;
            let Some(records) = zone.lock().unwrap().clone() else { continue };
            let asked = &query.queries[0];
            response.add_query(asked.clone());
            let is_asked = |record: &Record| record.name == *asked.name() && record.record_type() == asked.query_type();
            response.add_answers(records.iter().filter(|record| is_asked(record)).cloned());
            if !records.iter().any(|record| record.name == *asked.name()) {
                response.metadata.response_code = ResponseCode::NXDomain;
            }
            let _ = socket.send_to(&response.to_vec().unwrap(), peer).await;
        }
    });
    let mut udp = ConnectionConfig::udp();
    udp.port = port;
    let server = NameServerConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST), true, vec![udp]);
    let config = ResolverConfig::from_parts(None, vec![], vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().timeout = Duration::from_millis(500);
    Arc::new(builder.build().unwrap())
}

fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::new([127, 0, 0, host].into(), port)
}

fn a(name: &str, host: u8) -> Record {
    // a TTL of 0: hickory caches nothing
    Record::from_rdata(Name::from_ascii(name).unwrap(), 0, RData::A(A::new(127, 0, 0, host)))
}

fn srv(priority: u16, host: u8, port: u16) -> Record {
    let target = Name::from_ascii(format!("server-{host}.test.")).unwrap();
    let name = Name::from_ascii("_http._tcp.shop.test.").unwrap();
    Record::from_rdata(name, 0, RData::SRV(SRV::new(priority, 1, port, target)))
}

#[tokio::test]
async fn the_addresses_of_a_name_are_followed_and_nothing_is_lost() {
    let first = Server::at(address(2, 0)).await;
    let port = first.address.port();
    let [second, third] = [Server::at(address(3, port)).await, Server::at(address(4, port)).await];
    let zone = Zone::new(Mutex::new(Some(vec![a("shop.test.", 2), a("shop.test.", 3)])));
    let (gateway, pool) = gateway();
    let target: Target = format!("http://shop.test:{port}").parse().unwrap();
    dns::follow_addresses(&pool, &target, dns(zone.clone()).await);
    until("the addresses", || keys(&pool).len() == 2).await;
    let traffic = Traffic::start(&gateway);
    traffic.reaches(first.address).await;

    // one is added, and another one stops after its record was removed
    *zone.lock().unwrap() = Some(vec![a("shop.test.", 3), a("shop.test.", 4)]);
    traffic.reaches(third.address).await;
    until("the first has gone", || !keys(&pool).contains(&first.address.to_string())).await;
    first.leave().await;

    // one is killed, and its record stays
    second.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    traffic.check("after a server was killed");

    // the DNS server does not respond
    *zone.lock().unwrap() = None;
    until("a failed query", || !problem(&pool).is_empty()).await;
    traffic.reaches(third.address).await;
    *zone.lock().unwrap() = Some(vec![a("shop.test.", 4)]);
    until("the DNS server is back", || problem(&pool).is_empty()).await;
    assert_eq!(keys(&pool), [third.address.to_string()]);
    assert!(traffic.check("in all") > 1000);
}

#[tokio::test]
async fn the_records_of_a_service_are_followed_with_ports_and_priorities() {
    let servers = [Server::at(address(5, 0)).await, Server::at(address(6, 0)).await];
    let ports = servers.each_ref().map(|server| server.address.port());
    let addresses = [a("server-5.test.", 5), a("server-6.test.", 6)];
    let zone_of = |records: &[Record]| Some([records, &addresses[..]].concat());
    let zone = Zone::new(Mutex::new(zone_of(&[srv(10, 5, ports[0]), srv(20, 6, ports[1])])));
    let (gateway, pool) = gateway();
    let every = Duration::from_millis(500);
    dns::follow_srv(&pool, "_http._tcp.shop.test.", every, dns(zone.clone()).await);
    until("the records", || keys(&pool).len() == 2).await;
    let traffic = Traffic::start(&gateway);
    traffic.reaches(servers[0].address).await;
    assert_eq!(traffic.responses_of(servers[1].address), 0, "the second is a fallback");

    // the record of the first one is removed; an empty answer and an unknown name change nothing
    *zone.lock().unwrap() = zone_of(&[srv(20, 6, ports[1])]);
    traffic.reaches(servers[1].address).await;
    *zone.lock().unwrap() = zone_of(&[]);
    until("a query without a record", || !problem(&pool).is_empty()).await;
    traffic.reaches(servers[1].address).await;
    assert_eq!(keys(&pool), [format!("server-6.test:{}", ports[1])]);
    traffic.check("in all");
}
