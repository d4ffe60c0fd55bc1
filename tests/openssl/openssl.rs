//! TLS by OpenSSL, whose errors are text.

use std::net::SocketAddr;

use hyper_tls::HttpsConnector;
use hyper_tls::native_tls::TlsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::version::TLS12;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::{Detail, Evidence, Phase};

use crate::client::dial;
use crate::peer::{Peer, closed_port, upstream};
use crate::table::{Got, answer, cause, check, no_connection, row};
use crate::tls_peer::{BOTH, Certificate, TlsStream, demanding, open_ended, request, tls_upstream};

async fn to(address: SocketAddr) -> [Got; 2] {
    dial(HttpsConnector::new(), format!("https://{address}/")).await
}

async fn to_a_closed_port() -> [Got; 2] {
    let (_reserved, address) = closed_port();
    to(address).await
}

/// The client trusts any server, so that the server's refusal is what is left.
async fn to_a_demanding_server() -> [Got; 2] {
    let address = tls_upstream(demanding(&TLS12), request);
    dial(blind(), format!("https://{address}/")).await
}

async fn to_a_scheme_for_another_client() -> [Got; 2] {
    let mut only = HttpsConnector::new();
    only.https_only(true);
    dial(only, "http://a.test/".into()).await
}

fn blind() -> HttpsConnector<HttpConnector> {
    let mut tls = TlsConnector::builder();
    let tls = tls.danger_accept_invalid_certs(true).danger_accept_invalid_hostnames(true).build().expect("OpenSSL");
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    HttpsConnector::from((http, tls.into()))
}

fn plain_http(peer: &mut Peer) {
    peer.read(5);
    peer.say("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").fin();
}

/// A session that is trusted, and ends without `close_notify`.
async fn unclosed(script: fn(&mut TlsStream)) -> [Got; 2] {
    let address = tls_upstream(Certificate::Good.server(BOTH), script);
    dial(blind(), format!("https://{address}/")).await
}

#[test]
fn openssl_names_certificate_alert_or_breakdown_too() {
    let broken = || no_connection(Cause::TlsFailed).phase(Phase::Tls);
    check(vec![
        row(
            "O01",
            "self-signed",
            async { to(tls_upstream(Certificate::SelfSigned.server(BOTH), request)).await },
            no_connection(Cause::TlsCertificate).phase(Phase::Tls),
        ),
        row(
            "O02",
            "client certificate, TLS 1.2",
            to_a_demanding_server(),
            no_connection(Cause::TlsAlert).or_detail(Detail::TlsAlert(116)),
        ),
        row("O03", "port closed", to_a_closed_port(), no_connection(Cause::ConnectionRefused).errno(111)),
        row(
            "O04",
            "plain HTTP port",
            async { to(upstream(plain_http)).await },
            broken().text("the peer does not speak TLS"),
        ),
        row("O05", "FIN in the handshake", async { to(upstream(hello_then_fin)).await }, broken()),
        row("O06", "RST in the handshake", async { to(upstream(hello_then_rst)).await }, broken()),
        row(
            "O07",
            "no close_notify, no answer",
            unclosed(request),
            cause(Cause::ClosedBeforeResponse).idempotent_only(),
        ),
        // native-tls makes it a clean end: over OpenSSL nobody can tell that this body was cut
        row("O08", "no close_notify, open-ended body", unclosed(open_ended), answer(200)),
        row(
            "O09",
            "scheme for another client",
            to_a_scheme_for_another_client(),
            cause(Cause::InvalidTarget).not_sent(Evidence::LocalRefusal),
        ),
    ]);
}

fn hello_then_fin(peer: &mut Peer) {
    peer.read(5);
    peer.pause().fin();
}

fn hello_then_rst(peer: &mut Peer) {
    peer.read(5);
    peer.pause().rst();
}
