//! A fresh connection was had, and no answer: HTTP/1.1.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::{sleep, timeout};
use tower::{Service, ServiceBuilder, service_fn};
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::{Connection, Detail, Evidence, Phase};

use super::client::{Upload, ask, client, failed, fetch, get, stamped, url};
use super::late::Late;
use super::peer::{Peer, upstream};
use super::table::{Got, cause, check, row};

const A_LITTLE: Duration = Duration::from_millis(100);

/// The upstream acts while the request is queued.
async fn queued(script: fn(&mut Peer)) -> Got {
    ask(stamped(service_fn(Late::connect)), get(url(upstream(script)))).await
}

/// The upstream acts before the connection is ready for a request.
async fn to_a_quick_upstream(script: fn(&mut Peer)) -> Got {
    let connector = service_fn(move |target: Uri| {
        let dialing = HttpConnector::new().call(target);
        async move {
            let io = dialing.await;
            sleep(A_LITTLE).await;
            io
        }
    });
    ask(stamped(connector), get(url(upstream(script)))).await
}

async fn upload(script: fn(&mut Peer)) -> Got {
    let body: Upload = Full::new(Bytes::from(vec![b'x'; 8 << 20])).map_err(|never| match never {}).boxed_unsync();
    let request = Request::post(url(upstream(script))).body(body).expect("a good target");
    ask(client(), request).await
}

async fn upload_that_fails() -> Got {
    let gone = || io::Error::new(io::ErrorKind::ConnectionReset, "downstream client went away");
    let body = StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from_static(b"half"))), Err(gone().into())]));
    let request = Request::post(url(upstream(Peer::silence))).body(body.boxed_unsync()).expect("a good target");
    ask(client(), request).await
}

async fn limited_by_tower() -> Got {
    let service = ServiceBuilder::new().timeout(A_LITTLE).service(client());
    ask(service, get(url(upstream(Peer::silence)))).await
}

async fn limited_by_tokio() -> Got {
    let address = upstream(Peer::silence);
    failed(timeout(A_LITTLE, fetch(address)).await.expect_err("the upstream is silent"))
}

#[test]
fn a_fresh_connection_that_was_lost_tells_how_and_whether_the_request_went_out() {
    let unsent = || cause(Cause::NotDispatched).not_sent(Evidence::Returned).on(Connection::Fresh).phase(Phase::Send);
    let lost = |of| cause(of).idempotent_only();
    let fresh = |of| cause(of).idempotent_only().on(Connection::Fresh);
    let reset = || fresh(Cause::ResetBeforeResponse);
    let too_late = || cause(Cause::DeadlineExceeded).idempotent_only();
    let lost_in_write = reset().or_detail(Detail::Errno(104)).or_detail(Detail::Errno(32));
    check(vec![
        row("B01", "RST after accept", queued(|peer| peer.pause().rst()), unsent()),
        row("B02", "FIN after accept", queued(|peer| peer.pause().fin()), unsent()),
        // hyper-util tells neither that nothing was sent nor which connection it was: never guessed
        row(
            "B01+",
            "RST before it was ready",
            to_a_quick_upstream(|peer| peer.pause().rst()),
            lost(Cause::ResetBeforeResponse),
        ),
        row(
            "B02+",
            "FIN before it was ready",
            to_a_quick_upstream(|peer| peer.pause().fin()),
            lost(Cause::ClosedBeforeResponse),
        ),
        row("B03", "request, RST", async { fetch(upstream(|peer| peer.request().rst())).await }, reset().errno(104)),
        row(
            "B04",
            "request, FIN",
            async { fetch(upstream(|peer| peer.request().fin())).await },
            fresh(Cause::ClosedBeforeResponse).phase(Phase::Wait),
        ),
        row("B10", "RST into an upload", upload(reset_early), lost_in_write),
        row("B11", "early answer to an upload", upload(answer_early), super::table::answer(413)),
        row("B12", "our client's upload broke", upload_that_fails(), cause(Cause::RequestBodyFailed).never()),
        row("B13", "tower's timeout", limited_by_tower(), too_late()),
        row("B14", "tokio's timeout", limited_by_tokio(), too_late()),
    ]);
    assert_eq!(Cause::RequestBodyFailed.status(), StatusCode::BAD_REQUEST, "nobody blames the upstream for B12");
}

fn reset_early(peer: &mut Peer) {
    peer.read(64);
    peer.rst();
}

fn answer_early(peer: &mut Peer) {
    peer.read(64);
    peer.say("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").silence();
}
