//! TLS by rustls: certificates, alerts, garbage, ends without `close_notify`.

use std::io::Write;
use std::net::SocketAddr;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::{Detail, Evidence, Phase};

use super::client::dial;
use super::peer::{Peer, closed_port, upstream};
use super::table::{Got, answer, cause, check, cut, no_connection, row};
use super::tls_peer::{BOTH, Certificate, TlsStream, demanding, open_ended, request, tls_upstream, trusting};

fn https(config: ClientConfig) -> HttpsConnector<HttpConnector> {
    HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build()
}

async fn to(address: SocketAddr) -> [Got; 2] {
    dial(https(trusting(BOTH)), format!("https://{address}/")).await
}

async fn shown(certificate: Certificate) -> [Got; 2] {
    to(tls_upstream(certificate.server(BOTH), serve)).await
}

fn serve(stream: &mut TlsStream) {
    request(stream);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
}

/// hyper-rustls fills ALPN itself, so that the server is the one without a common protocol.
async fn without_common_alpn() -> [Got; 2] {
    let mut server = Certificate::Good.server(BOTH);
    server.alpn_protocols = vec![b"spdy/9".to_vec()];
    let address = tls_upstream(server, serve);
    let mut client = trusting(BOTH);
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = HttpsConnector::from((plain_or_not(), client));
    dial(connector, format!("https://{address}/")).await
}

fn plain_or_not() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector
}

async fn without_common_version() -> [Got; 2] {
    let address = tls_upstream(Certificate::Good.server(&[&TLS12]), serve);
    dial(https(trusting(&[&TLS13])), format!("https://{address}/")).await
}

async fn to_a_closed_port() -> [Got; 2] {
    let (_reserved, address) = closed_port();
    to(address).await
}

/// The handshake begins and is ended by the other side.
fn hello_then(end: fn(&mut Peer)) -> SocketAddr {
    upstream(move |peer| {
        peer.read(5);
        end(peer.pause());
    })
}

fn plain_http(peer: &mut Peer) {
    peer.read(5);
    peer.say("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").fin();
}

#[test]
fn tls_names_certificate_alert_or_breakdown() {
    let certificate = || no_connection(Cause::TlsCertificate).phase(Phase::Tls);
    let alert = |number| no_connection(Cause::TlsAlert).phase(Phase::Tls).or_detail(Detail::TlsAlert(number));
    let broken = || no_connection(Cause::TlsFailed).phase(Phase::Tls);
    let refused = || cause(Cause::TlsAlert).phase(Phase::Tls).or_detail(Detail::TlsAlert(116));
    check(vec![
        row("F00", "good", shown(Certificate::Good), answer(200)),
        row("F01", "unknown issuer", shown(Certificate::SelfSigned), certificate()),
        row("F02", "other name", shown(Certificate::OtherName), certificate()),
        row("F03", "expired", shown(Certificate::Expired), certificate()),
        row("F04", "no common ALPN", without_common_alpn(), alert(120)),
        row("F05", "no common version", without_common_version(), alert(70)),
        row(
            "F06",
            "client certificate, TLS 1.2",
            async { to(tls_upstream(demanding(&TLS12), serve)).await },
            alert(116),
        ),
        row(
            "F07",
            "client certificate, TLS 1.3",
            async { to(tls_upstream(demanding(&TLS13), serve)).await[1].clone() },
            refused().not_sent(Evidence::TlsRefusal),
        ),
        // without a stamp nobody knows whether this is the connection's first flight
        row(
            "F07+",
            "the same, bare",
            async { to(tls_upstream(demanding(&TLS13), serve)).await[0].clone() },
            refused().idempotent_only(),
        ),
        row(
            "F08",
            "plain HTTP port",
            async { to(upstream(plain_http)).await },
            broken().text("the peer does not speak TLS"),
        ),
        row("F09", "FIN in the handshake", async { to(hello_then(Peer::fin)).await }, broken()),
        row("F10", "RST in the handshake", async { to(hello_then(Peer::rst)).await }, broken().errno(104)),
        row(
            "F11",
            "no close_notify, no answer",
            async { to(tls_upstream(Certificate::Good.server(BOTH), request)).await },
            cause(Cause::ClosedBeforeResponse).idempotent_only(),
        ),
        row(
            "F12",
            "no close_notify, open-ended body",
            async { to(tls_upstream(Certificate::Good.server(BOTH), open_ended)).await },
            cut(Cause::IncompleteBody),
        ),
        row("F14", "port closed", to_a_closed_port(), no_connection(Cause::ConnectionRefused).errno(111)),
        row(
            "F14+",
            "scheme for another client",
            dial(https(trusting(BOTH)), "http://a.test/".into()),
            cause(Cause::InvalidTarget).not_sent(Evidence::LocalRefusal),
        ),
        row(
            "F15",
            "no name for a certificate",
            dial(https(trusting(BOTH)), "https://a..test/".into()),
            cause(Cause::InvalidTarget).not_sent(Evidence::LocalRefusal),
        ),
    ]);
}
