//! Upstreams that follow the plans, byte by byte and stream by stream.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::sync::mpsc;

use super::plan::{Framing, Plan, Plans, Upstream as Behaviour};
use super::record::Record;
use crate::support::{Message, Upstream, Wire};

/// What becomes of a connection after an exchange.
#[derive(PartialEq, Eq)]
enum Then {
    Keep,
    Close,
}

fn number(path: &str) -> Option<u64> {
    path.strip_prefix("/e/")?.parse().ok()
}

pub(crate) async fn http1(plans: Plans, record: Arc<Record>) -> Upstream {
    Upstream::scripted(move |mut wire, _| {
        let record = record.clone();
        async move {
            while let Some(head) = wire.request_head().await {
                if !matches!(http1_exchange(&mut wire, head, plans, &record).await, Ok(Then::Keep)) {
                    return;
                }
            }
        }
    })
    .await
}

async fn http1_exchange(wire: &mut Wire, mut head: Message, plans: Plans, record: &Record) -> io::Result<Then> {
    let Some(number) = head.first.split(' ').nth(1).and_then(number) else {
        record.violation(format!("no request that a client sent: {:?}", head.first));
        return Ok(Then::Close);
    };
    let plan = plans.get(number);
    let before = record.processed(plan.number);
    let early = plan.upstream == Behaviour::RespondEarly;
    if !early {
        let whole = wire.request_body(&mut head).await.is_ok();
        record.uploaded(plans, &plan, &head.body, whole);
        if !whole {
            return Ok(Then::Close);
        }
    }
    if before == 0 && plan.upstream == Behaviour::LoseFirst {
        return Ok(Then::Close);
    }
    for _ in 0..plan.interim {
        wire.try_write("HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n").await?;
    }
    respond_http1(wire, plans, &plan).await?;
    let mut closes = matches!(plan.upstream, Behaviour::CloseAfterwards | Behaviour::Cut | Behaviour::RefuseFirst);
    closes |= plan.framing == Framing::Close && plan.expected() > 0;
    if early && head.get("expect").is_some() {
        // the client is to keep the body back, as it has its response (RFC 9110 section 10.1.1)
    } else if early && !closes && plan.number % 2 == 0 {
        let whole = wire.request_body(&mut head).await.is_ok();
        record.uploaded(plans, &plan, &head.body, whole);
        closes |= !whole;
    } else {
        closes |= early;
    }
    Ok(if closes { Then::Close } else { Then::Keep })
}

async fn respond_http1(wire: &mut Wire, plans: Plans, plan: &Plan) -> io::Result<()> {
    let body = plans.download(plan);
    let without_body = matches!(plan.status, 204 | 304);
    let fields = match plan.framing {
        _ if without_body => String::new(),
        Framing::Length => format!("Content-Length: {}\r\n", body.len()),
        Framing::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        Framing::ChunkedWithTrailer => "Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n".to_owned(),
        // an empty body would need an end as well
        Framing::Close if body.is_empty() => "Content-Length: 0\r\n".to_owned(),
        Framing::Close => "Connection: close\r\n".to_owned(),
    };
    let mut bytes = format!("HTTP/1.1 {} X\r\nX-Exchange: {}\r\n{fields}\r\n", plan.status, plan.number).into_bytes();
    if without_body || plan.method == Method::HEAD {
        return wire.try_write(bytes).await;
    }
    let whole = plan.upstream != Behaviour::Cut;
    let sent = if whole { &body[..] } else { &body[..body.len() / 2] };
    if matches!(plan.framing, Framing::Chunked | Framing::ChunkedWithTrailer) {
        for piece in sent.chunks(4_000) {
            bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            bytes.extend(piece);
            bytes.extend(b"\r\n");
        }
        let end = match plan.framing {
            _ if !whole => String::new(),
            Framing::ChunkedWithTrailer => format!("0\r\nX-Sum: {}\r\n\r\n", body.len()),
            _ => "0\r\n\r\n".to_owned(),
        };
        bytes.extend(end.into_bytes());
    } else {
        bytes.extend(sent);
    }
    // in pieces, so that other exchanges come between
    for piece in bytes.chunks(10_000) {
        wire.try_write(piece).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

pub(crate) async fn http2(plans: Plans, record: Arc<Record>) -> Upstream {
    Upstream::accepting(move |stream, _| {
        let record = record.clone();
        async move {
            let Ok(mut server) = h2::server::handshake(stream).await else { return };
            let (close, mut closing) = mpsc::unbounded_channel::<()>();
            loop {
                tokio::select! {
                    Some(()) = closing.recv() => server.graceful_shutdown(),
                    accepted = server.accept() => {
                        let Some(Ok((request, respond))) = accepted else { return };
                        let (record, close) = (record.clone(), close.clone());
                        tokio::spawn(async move {
                            // a client that cancels ends the exchange with an error
                            if let Ok(Then::Close) = http2_exchange(request, respond, plans, &record).await {
                                let _ = close.send(());
                            }
                        });
                    }
                }
            }
        }
    })
    .await
}

async fn http2_exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    plans: Plans,
    record: &Record,
) -> Result<Then, h2::Error> {
    let plan = plans.get(number(request.uri().path()).unwrap());
    let refuse = plan.upstream == Behaviour::RefuseFirst && !record.was_refused(plan.number);
    if refuse {
        respond.send_reset(Reason::REFUSED_STREAM);
        return Ok(Then::Keep);
    }
    let before = record.processed(plan.number);
    let mut upload = Some(request.into_body());
    if plan.upstream != Behaviour::RespondEarly {
        receive(upload.take().unwrap(), plans, &plan, record).await?;
    }
    if before == 0 && plan.upstream == Behaviour::LoseFirst {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(Then::Keep);
    }
    for _ in 0..plan.interim {
        respond.send_informational(Response::builder().status(103).body(()).unwrap())?;
    }
    let mut head = Response::builder().status(plan.status).header("x-exchange", plan.number);
    if plan.framing == Framing::Length && !matches!(plan.status, 204 | 304) {
        head = head.header("content-length", plan.download);
    }
    let empty = plan.expected() == 0 && plan.framing != Framing::ChunkedWithTrailer;
    let stream = respond.send_response(head.body(()).unwrap(), empty || plan.method == Method::HEAD)?;
    if !empty && plan.method != Method::HEAD {
        send(stream, plans, &plan).await?;
    }
    if let Some(upload) = upload {
        if plan.number % 2 == 0 {
            receive(upload, plans, &plan, record).await?;
        } else {
            respond.send_reset(Reason::NO_ERROR);
        }
    }
    Ok(if plan.upstream == Behaviour::CloseAfterwards { Then::Close } else { Then::Keep })
}

async fn receive(mut upload: RecvStream, plans: Plans, plan: &Plan, record: &Record) -> Result<(), h2::Error> {
    let mut body = Vec::new();
    let ended = loop {
        match upload.data().await {
            Some(Ok(data)) => {
                let _ = upload.flow_control().release_capacity(data.len());
                body.extend(data);
            }
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    record.uploaded(plans, plan, &body, ended.is_ok());
    ended
}

async fn send(mut stream: SendStream<Bytes>, plans: Plans, plan: &Plan) -> Result<(), h2::Error> {
    let mut body = plans.download(plan);
    let (length, trailer) = (body.len(), plan.framing == Framing::ChunkedWithTrailer);
    if plan.upstream == Behaviour::Cut {
        body.truncate(length / 2);
    }
    while !body.is_empty() {
        stream.reserve_capacity(body.len().min(10_000));
        let Some(capacity) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
        let piece = body.split_to(capacity?.min(body.len()));
        let ends = body.is_empty() && plan.upstream != Behaviour::Cut && !trailer;
        stream.send_data(piece, ends)?;
    }
    match plan.upstream {
        Behaviour::Cut => stream.send_reset(Reason::INTERNAL_ERROR),
        _ if trailer => {
            let sum = HeaderValue::from_str(&length.to_string()).unwrap();
            stream.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), sum)]))?;
        }
        _ => {}
    }
    Ok(())
}
