//! Clients that follow the plans.

use std::future::Future;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::net::TcpStream;

use super::plan::{Client, PIPELINED, Plan, Plans};
use super::record::{Received, Record};
use crate::support::{Message, PATIENCE, Wire, soon};

/// Streams of one HTTP/2 client at the same time.
const STREAMS: u64 = 4;

/// Below the limit of [`Wire`]'s own waits, which do not name the exchange.
const LIMIT: Duration = Duration::from_secs(PATIENCE.as_secs() - 1);

/// Waits for what has to come.
async fn in_time<F: Future>(plan: &Plan, future: F) -> F::Output {
    let ended = tokio::time::timeout(LIMIT, future).await;
    ended.unwrap_or_else(|_| panic!("never ended: {plan:?}"))
}

/// Runs these exchanges one after the other, on connections that are kept where they can be.
pub(crate) async fn by_http1(gateway: SocketAddr, plans: Plans, numbers: Range<u64>, record: Arc<Record>) {
    let mut kept = None;
    for number in numbers {
        let wire = match kept.take() {
            Some(wire) => wire,
            None => Wire::connect(gateway).await,
        };
        kept = http1_exchange(wire, plans, &plans.get(number), &record).await;
    }
}

/// Returns the connection if it can be used again.
async fn http1_exchange(mut wire: Wire, plans: Plans, plan: &Plan, record: &Record) -> Option<Wire> {
    let upload = plans.upload(plan);
    let mut bytes = head(plan).into_bytes();
    bytes.extend(&encoded(&upload, plan.chunked_upload)[..]);
    if plan.client == Client::CancelUpload {
        record.cancelled();
        // what is cut is the body, or the head where there is none
        let _ = wire.try_write(&bytes[..bytes.len() - 1 - upload.len() / 2]).await;
        return None;
    }
    let pipelined = (plan.client == Client::Pipeline).then(|| plans.get(plan.number | PIPELINED));
    if let Some(next) = &pipelined {
        bytes.extend(head(next).into_bytes());
    }
    // a gateway may respond and close before it has read everything
    let written = wire.try_write(bytes).await.is_ok();
    if plan.client == Client::CancelBeforeHead {
        record.cancelled();
        return None;
    }
    if plan.client == Client::CancelDownload {
        record.cancelled();
        let head = loop {
            let head = wire.head().await;
            if !(100..200).contains(&head.status()) {
                break head;
            }
        };
        if head.get("x-exchange").is_some() {
            wire.bytes(plan.expected() / 2).await;
        }
        return None;
    }
    let mut reusable = written;
    for plan in [Some(plan), pipelined.as_ref()].into_iter().flatten() {
        let message = in_time(plan, response(&mut wire, plan)).await;
        reusable &= message.whole
            && message.get("connection") != Some("close")
            && message.get("content-length").is_some()
                | message.get("transfer-encoding").is_some()
                | matches!(message.status(), 204 | 304);
        record.received(
            plans,
            plan,
            &Received {
                status: message.status(),
                number: message.get("x-exchange"),
                body: &message.body,
                trailer: message.trailers.iter().find(|field| field.0 == "x-sum").map(|field| field.1.as_str()),
                whole: message.whole,
            },
        );
        if !reusable {
            return None;
        }
    }
    Some(wire)
}

/// The final response, behind interim ones.
async fn response(wire: &mut Wire, plan: &Plan) -> Message {
    loop {
        let message = if plan.method == Method::HEAD { wire.head().await } else { wire.answer().await };
        if !(100..200).contains(&message.status()) {
            return message;
        }
    }
}

fn head(plan: &Plan) -> String {
    let framing = match (plan.chunked_upload, plan.upload) {
        (true, _) => "Transfer-Encoding: chunked\r\n".to_owned(),
        (false, 0) if plan.method != Method::POST => String::new(),
        (false, length) => format!("Content-Length: {length}\r\n"),
    };
    let expect = if plan.expects_continue { "Expect: 100-continue\r\n" } else { "" };
    let fields = format!("Host: shop.example\r\nTE: trailers\r\n{expect}{framing}");
    format!("{} {} HTTP/1.1\r\n{fields}\r\n", plan.method, plan.path())
}

fn encoded(body: &Bytes, chunked: bool) -> Bytes {
    if !chunked {
        return body.clone();
    }
    let mut bytes = Vec::with_capacity(body.len() + 64);
    for piece in body.chunks(5_000) {
        bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
        bytes.extend(piece);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes.into()
}

/// Runs these exchanges some at a time, on one connection while it lasts.
pub(crate) async fn by_http2(gateway: SocketAddr, plans: Plans, numbers: Range<u64>, record: Arc<Record>) {
    let mut sender = connect(gateway).await;
    let mut next = numbers.start;
    while next < numbers.end {
        let batch = next..numbers.end.min(next + STREAMS);
        next = batch.end;
        let ready = soon(sender.clone().ready()).await;
        sender = match ready {
            Ok(sender) => sender,
            Err(_) => connect(gateway).await,
        };
        let exchanges = batch.map(|number| http2_exchange(sender.clone(), plans, plans.get(number), &record));
        join_all(exchanges).await;
    }
}

async fn connect(gateway: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(gateway).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn http2_exchange(sender: SendRequest<Bytes>, plans: Plans, plan: Plan, record: &Record) {
    let mut received = Received { status: 0, number: None, body: &[], trailer: None, whole: false };
    let Ok(mut sender) = soon(sender.ready()).await else { return record.received(plans, &plan, &received) };
    let uri = format!("http://shop.example{}", plan.path());
    let request = Request::builder().method(&plan.method).uri(uri).header("te", "trailers").body(()).unwrap();
    let mut upload = plans.upload(&plan);
    let cancelled = plan.client == Client::CancelUpload;
    let ends = upload.is_empty() && !cancelled;
    let Ok((response, mut stream)) = sender.send_request(request, ends) else {
        return record.received(plans, &plan, &received);
    };
    if cancelled {
        upload.truncate(upload.len() / 2);
    }
    let sending = async {
        while !upload.is_empty() {
            stream.reserve_capacity(upload.len());
            let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
            let piece = upload.split_to(capacity.min(upload.len()));
            let last = upload.is_empty() && !cancelled;
            if stream.send_data(piece, last).is_err() {
                break;
            }
        }
        stream
    };
    let reading = async {
        if matches!(plan.client, Client::CancelBeforeHead | Client::CancelUpload) {
            tokio::task::yield_now().await;
            return None;
        }
        response.await.ok()
    };
    let (mut stream, response) = in_time(&plan, async { tokio::join!(sending, reading) }).await;
    if matches!(plan.client, Client::CancelBeforeHead | Client::CancelUpload) {
        stream.send_reset(Reason::CANCEL);
        return record.cancelled();
    }
    let Some(response) = response else { return record.received(plans, &plan, &received) };
    let (head, mut download) = response.into_parts();
    let (mut body, mut trailers) = (Vec::new(), None);
    let ended = in_time(&plan, async {
        while let Some(data) = download.data().await {
            let data = data?;
            let _ = download.flow_control().release_capacity(data.len());
            body.extend(data);
            if plan.client == Client::CancelDownload && body.len() > plan.download / 2 {
                return Ok(());
            }
        }
        trailers = download.trailers().await?;
        Ok::<_, h2::Error>(())
    })
    .await;
    let value = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    let number = head.headers.get("x-exchange").map(value);
    let trailer = trailers.as_ref().and_then(|trailers| trailers.get("x-sum")).map(value);
    received.status = head.status.as_u16();
    received.number = number.as_deref();
    received.trailer = trailer.as_deref();
    received.body = &body;
    received.whole = ended.is_ok();
    if plan.client == Client::CancelDownload {
        record.cancelled();
        received.whole = false;
    }
    record.received(plans, &plan, &received);
}
