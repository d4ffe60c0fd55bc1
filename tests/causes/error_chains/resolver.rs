//! A name server that follows the name it is asked for, and hickory-resolver in front of it.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::name_server::TokioConnectionProvider;
use hickory_resolver::proto::xfer::Protocol;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use tower::service_fn;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::Phase;

use super::client::{dial, failed};
use super::table::{Got, cause, check, no_connection, row};

/// Serves names by their first label (RFC 1035 section 4): the code it asks for, or no answer.
pub fn serve_names(at: &str) -> SocketAddr {
    let socket = UdpSocket::bind(at).expect("the address is free");
    let address = socket.local_addr().expect("an address");
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, asker)) = socket.recv_from(&mut query) {
            if let Some(answer) = answer(&query[..length]) {
                let _ = socket.send_to(&answer, asker);
            }
        }
    });
    address
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let label = query.get(13..13 + usize::from(*query.get(12)?))?;
    let code: u8 = match label.to_ascii_lowercase().as_slice() {
        b"silent" => return None,
        b"servfail" => 2,
        b"nx" => 3,
        b"refused" => 5,
        _ => 0,
    };
    let question = query.get(12..)?;
    let end = question.iter().position(|&byte| byte == 0)? + 5;
    let mut answer = query[..12].to_vec();
    answer[2] = 0x85;
    answer[3] = 0x80 | code;
    // one question, no records
    answer[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(question.get(..end)?);
    Some(answer)
}

fn hickory() -> TokioResolver {
    let mut config = ResolverConfig::new();
    config.add_name_server(NameServerConfig::new(serve_names("127.0.0.1:0"), Protocol::Udp));
    let mut resolver = TokioResolver::builder_with_config(config, TokioConnectionProvider::default());
    resolver.options_mut().timeout = Duration::from_millis(200);
    resolver.options_mut().attempts = 0;
    resolver.build()
}

/// Asked below hyper-util's connector.
async fn resolved(name: &'static str) -> [Got; 2] {
    let resolver = hickory();
    let service = service_fn(move |name: Name| {
        let resolver = resolver.clone();
        async move {
            let found = resolver.lookup_ip(format!("{name}.")).await?;
            let found: Vec<_> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok::<_, hickory_resolver::ResolveError>(found.into_iter())
        }
    });
    dial(HttpConnector::new_with_resolver(service), format!("http://{name}.test/")).await
}

/// Asked alone: its words name the cause, and prove nothing.
async fn asked(name: &'static str) -> Got {
    failed(hickory().lookup_ip(format!("{name}.test.")).await.expect_err("the name has no address"))
}

#[test]
fn hickory_tells_what_getaddrinfo_hides() {
    let of = |cause| no_connection(cause).phase(Phase::Resolve);
    let alone = |of| cause(of).idempotent_only().phase(Phase::Resolve);
    check(vec![
        row("A07", "NXDOMAIN", resolved("nx"), of(Cause::DnsNotFound)),
        row("A08", "SERVFAIL", resolved("servfail"), of(Cause::DnsFailure)),
        row("A08+", "REFUSED", resolved("refused"), of(Cause::DnsFailure)),
        row("A09", "NODATA", resolved("nodata"), of(Cause::DnsNotFound)),
        row("A10", "silence", resolved("silent"), of(Cause::DnsTimeout)),
        row("A07+", "NXDOMAIN, alone", asked("nx"), alone(Cause::DnsNotFound)),
        row("A08++", "SERVFAIL, alone", asked("servfail"), alone(Cause::DnsFailure)),
        row("A09+", "NODATA, alone", asked("nodata"), alone(Cause::DnsNotFound)),
        row("A10+", "silence, alone", asked("silent"), alone(Cause::DnsTimeout)),
    ]);
}
