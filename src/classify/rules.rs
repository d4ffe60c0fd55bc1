//! The classification rules: one function for each side of the response head.

use std::io::ErrorKind;

use super::classification::{AttemptContext, Classification, UploadState};
use super::connection_stats::WireSnapshot;
use super::facts::{ErrorFacts, H2Facts, HyperFacts, IoFacts, TextFacts, TlsFacts};
use crate::cause::BadGatewayCause as Cause;
use crate::cause::{Detail, Evidence, Phase, Replay};

/// Alerts about the client's certificate or its absence (RFC 8446 section 6.2).
///
/// A server sends them when it has processed the client's `Certificate` message, before its handshake is complete, and delivers
/// no application data before that (RFC 8446 sections 2 and 4.4.2.4; clients here send no early data).
/// `access_denied` (49) is excluded: an access check may have read the request.
const REFUSALS: [u8; 7] = [42, 43, 44, 45, 46, 48, 116];
const REFUSED_STREAM: u32 = 7;

/// Classifies an error returned instead of a response head.
pub(super) fn before_head(clues: &ErrorFacts, scene: &AttemptContext) -> Classification {
    let scene = &as_spoken(clues, *scene);
    if let Some(verdict) = local_error(clues, scene) {
        return verdict;
    }
    if clues.connecting {
        let verdict = connecting(clues);
        return if clues.typed { verdict } else { verdict.inferred() };
    }
    if let Some(tls) = clues.tls {
        return judge_tls(tls, scene);
    }
    match clues.text {
        Some(TextFacts::NameTimeout) => return Cause::DnsTimeout.into(),
        Some(TextFacts::NameNotFound) => return Cause::DnsNotFound.into(),
        Some(TextFacts::NameFailure) => return Cause::DnsFailure.into(),
        _ => {}
    }
    if let Some(h2) = clues.h2 {
        if h2 != H2Facts::Io {
            return judge_h2(h2, scene);
        }
    }
    match clues.hyper {
        Some(HyperFacts::Canceled) => match unknown_error(scene) {
            Some(verdict) => verdict,
            None => not_sent(Cause::NotDispatched, Evidence::Returned),
        },
        // texts about a connection, not about a request
        Some(HyperFacts::Unexpected) => unknown_error(scene).unwrap_or(Cause::NotDispatched.into()),
        Some(HyperFacts::Closed) => Cause::NotDispatched.into(),
        Some(HyperFacts::TooLarge) => Cause::HeadTooLarge.into(),
        Some(HyperFacts::Parse) => unknown_error(scene).unwrap_or(Cause::InvalidResponse.into()),
        Some(HyperFacts::Timeout) => Cause::PeerUnresponsive.into(),
        Some(HyperFacts::Incomplete) => connection_lost(Cause::ClosedBeforeResponse, scene),
        _ => judge_io(clues, scene),
    }
}

/// Marks a connection as HTTP/2 if its connector did not: hyper-util's pool reports only ALPN.
fn as_spoken(clues: &ErrorFacts, mut scene: AttemptContext) -> AttemptContext {
    // bytes refused by an HTTP/1 parser belong to another protocol
    let refused = matches!(clues.hyper, Some(HyperFacts::Parse | HyperFacts::Canceled | HyperFacts::Unexpected));
    if let Some(wire) = &mut scene.wire {
        wire.multiplexed |= clues.h2.is_some() || (!refused && begins_h2(wire.first_bytes()));
    }
    scene
}

/// The first frame of an HTTP/2 connection is SETTINGS, on stream 0 (RFC 9113 section 3.4).
fn begins_h2(first: &[u8]) -> bool {
    matches!(first, [0, 0, _, 4, ..])
}

/// Classifies an error in a response body.
pub(super) fn in_body(clues: &ErrorFacts, scene: &AttemptContext) -> Classification {
    if let Some(failure) = &clues.failure {
        return Classification::new(failure.cause());
    }
    // no error of the upstream: our side failed while it wrote, usually because the client's upload failed
    let cannot_write = clues.hyper == Some(HyperFacts::WriteFailed) || matches!(clues.h2, Some(H2Facts::Cancelled(_)));
    let cause = match clues.text {
        _ if scene.upload == UploadState::Failed => Cause::RequestBodyFailed,
        _ if cannot_write && scene.upload == UploadState::Unwatched => Cause::RequestBodyFailed,
        Some(TextFacts::LengthLimit) => Cause::BodyTooLarge,
        Some(TextFacts::ChunkFraming) => Cause::TransferCoding,
        Some(TextFacts::TrailersTooLarge) => Cause::TrailerTooLarge,
        Some(TextFacts::Trailers) => Cause::InvalidResponse,
        Some(TextFacts::ContentCoding) => Cause::ContentCoding,
        Some(TextFacts::BodyTimeout) => Cause::BodyReadTimeout,
        _ if clues.elapsed => Cause::BodyReadTimeout,
        _ if clues.hyper == Some(HyperFacts::Timeout) => Cause::PeerUnresponsive,
        _ if clues.io.is_some_and(|io| io.kind == ErrorKind::TimedOut) => Cause::BodyReadTimeout,
        _ if clues.hyper.is_some() || clues.io.is_some() || clues.h2.is_some() || clues.tls.is_some() => {
            Cause::IncompleteBody
        }
        _ => Cause::Unknown,
    };
    let verdict = Classification::new(cause).phase(Phase::Body).replay(Replay::Never, Evidence::Inferred);
    match clues.h2 {
        Some(H2Facts::GoAway(code) | H2Facts::Reset(code) | H2Facts::Ours(code) | H2Facts::Cancelled(code)) => {
            verdict.detail(Detail::H2(code))
        }
        _ => with_errno(verdict, clues.io),
    }
}

/// Classifies errors on our side of the connection, which may carry the upstream's errors further inside.
fn local_error(clues: &ErrorFacts, scene: &AttemptContext) -> Option<Classification> {
    if scene.upload == UploadState::Failed {
        return Some(Cause::RequestBodyFailed.into());
    }
    if clues.h2 == Some(H2Facts::User) {
        return Some(not_sent(Cause::GatewayInternal, Evidence::LocalRefusal));
    }
    if let Some(H2Facts::Cancelled(code)) = clues.h2 {
        let cause = if scene.upload == UploadState::Sound { Cause::GatewayInternal } else { Cause::RequestBodyFailed };
        return Some(Classification::new(cause).detail(Detail::H2(code)));
    }
    let cause = match (clues.hyper, clues.text) {
        (Some(HyperFacts::User), _) if scene.upload == UploadState::Sound => Cause::GatewayInternal,
        (Some(HyperFacts::User), _) => Cause::RequestBodyFailed,
        (Some(HyperFacts::TaskGone), _) => Cause::GatewayInternal,
        (_, Some(TextFacts::Overloaded)) => Cause::GatewayOverload,
        (_, Some(TextFacts::BadTarget)) => Cause::InvalidTarget,
        _ => return None,
    };
    Some(match cause {
        Cause::GatewayOverload => not_sent(cause, Evidence::LocalRefusal),
        Cause::InvalidTarget if clues.typed => not_sent(cause, Evidence::LocalRefusal),
        _ => cause.into(),
    })
}

/// Classifies errors of a TLS handshake: a reset or an end belongs to the handshake.
#[cfg(all(feature = "client", feature = "rustls"))]
pub(super) fn handshaking(clues: &ErrorFacts) -> Classification {
    match clues.tls {
        Some(tls) => shaking(tls),
        None => with_errno(not_sent(Cause::TlsFailed, Evidence::NoConnection).phase(Phase::Tls), clues.io),
    }
}

/// Classifies errors before a connection was established: the request was not sent.
pub(super) fn connecting(clues: &ErrorFacts) -> Classification {
    if let Some(tls) = clues.tls {
        return shaking(tls);
    }
    if let Some(TextFacts::BadTarget) = clues.text {
        return not_sent(Cause::InvalidTarget, Evidence::LocalRefusal);
    }
    let in_dns = clues.dns
        || matches!(clues.text, Some(TextFacts::NameNotFound | TextFacts::NameFailure | TextFacts::NameTimeout));
    let timed_out = clues.elapsed || clues.io.is_some_and(|io| io.kind == ErrorKind::TimedOut);
    let cause = match (clues.text, clues.io) {
        (Some(TextFacts::NameNotFound), _) => Cause::DnsNotFound,
        (Some(TextFacts::NameTimeout), _) => Cause::DnsTimeout,
        _ if in_dns && timed_out => Cause::DnsTimeout,
        _ if in_dns => Cause::DnsFailure,
        _ if timed_out => Cause::ConnectTimeout,
        (_, Some(io)) => refused_by(io, clues.tcp),
        _ => Cause::ConnectFailed,
    };
    with_errno(not_sent(cause, Evidence::NoConnection), clues.io)
}

/// The cause of a connect error of the operating system; `tcp` means that no protocol ran on top of it.
fn refused_by(io: IoFacts, tcp: bool) -> Cause {
    // ENOMEM, ENFILE, EMFILE, EADDRNOTAVAIL, ENOBUFS
    const GATEWAY: [i32; 5] = [12, 23, 24, 99, 105];
    match (io.kind, io.errno) {
        (_, Some(errno)) if GATEWAY.contains(&errno) => Cause::GatewayResources,
        // a missing Unix socket is like a closed port
        (ErrorKind::ConnectionRefused | ErrorKind::NotFound, _) => Cause::ConnectionRefused,
        (ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied, _) => {
            Cause::Unroutable
        }
        (ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe, _) if !tcp => Cause::TlsFailed,
        _ => Cause::ConnectFailed,
    }
}

/// Classifies a TLS error before our side completed the handshake: only handshake messages were written.
fn shaking(tls: TlsFacts) -> Classification {
    named_tls(tls, |cause| not_sent(cause, Evidence::NoConnection))
}

/// Classifies a TLS error after our side completed the handshake: the request may have been written.
fn judge_tls(tls: TlsFacts, scene: &AttemptContext) -> Classification {
    // alerts may come at any time; they belong to the handshake only in a connection's first flight
    let first_flight = scene.wire.is_some_and(|wire| wire.served == 0 && wire.read == 0);
    match tls {
        TlsFacts::Alert(alert) if first_flight && REFUSALS.contains(&alert) => {
            named_tls(tls, |cause| not_sent(cause, Evidence::TlsRefusal))
        }
        _ => named_tls(tls, Classification::new),
    }
}

fn named_tls(tls: TlsFacts, verdict: impl FnOnce(Cause) -> Classification) -> Classification {
    let (cause, detail) = match tls {
        TlsFacts::Certificate => (Cause::TlsCertificate, None),
        TlsFacts::Alert(alert) => (Cause::TlsAlert, Some(Detail::TlsAlert(alert))),
        TlsFacts::Foreign => (Cause::TlsFailed, Some(Detail::Text("the peer does not speak TLS"))),
        TlsFacts::Other => (Cause::TlsFailed, None),
    };
    let verdict = verdict(cause).phase(Phase::Tls);
    detail.map_or(verdict, |detail| verdict.detail(detail))
}

fn judge_h2(h2: H2Facts, scene: &AttemptContext) -> Classification {
    let (H2Facts::GoAway(code) | H2Facts::Reset(code) | H2Facts::Ours(code)) = h2 else { return Cause::Unknown.into() };
    let verdict = match h2 {
        H2Facts::GoAway(_) => not_sent(Cause::StreamRefused, Evidence::GoAway),
        H2Facts::Reset(REFUSED_STREAM) => not_sent(Cause::StreamRefused, Evidence::RefusedStream),
        H2Facts::Reset(_) => Cause::StreamReset.into(),
        // the peer's protocol says more than our error code
        _ => match unknown_error(scene) {
            Some(verdict) => return verdict,
            None => Cause::InvalidResponse.into(),
        },
    };
    verdict.detail(Detail::H2(code))
}

/// Classifies I/O errors outside of the connect phase, and all errors without a rule of their own.
fn judge_io(clues: &ErrorFacts, scene: &AttemptContext) -> Classification {
    let Some(io) = clues.io else {
        return match clues.text {
            _ if clues.elapsed => Cause::DeadlineExceeded.into(),
            Some(TextFacts::LengthLimit) => Cause::BodyTooLarge.into(),
            Some(TextFacts::BodyTimeout) => Cause::BodyReadTimeout.into(),
            Some(TextFacts::ContentCoding) => Cause::ContentCoding.into(),
            Some(TextFacts::ChunkFraming) => Cause::TransferCoding.into(),
            _ if clues.h2 == Some(H2Facts::Io) => connection_lost(Cause::ClosedBeforeResponse, scene),
            _ => Cause::Unknown.into(),
        };
    };
    // a service may return these for a file, a database, or an established connection: they prove nothing
    let verdict: Classification = match io.kind {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => Cause::ConnectionRefused.into(),
        ErrorKind::AddrNotAvailable => Cause::GatewayResources.into(),
        _ if io.errno.is_some_and(|errno| [23, 24].contains(&errno)) => Cause::GatewayResources.into(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Cause::Unroutable.into(),
        ErrorKind::TimedOut if scene.wire.is_some() || clues.hyper.is_some() => Cause::PeerUnresponsive.into(),
        ErrorKind::TimedOut => Cause::ConnectTimeout.into(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => connection_lost(Cause::ResetBeforeResponse, scene),
        ErrorKind::BrokenPipe if io.errno.is_some() => connection_lost(Cause::ResetBeforeResponse, scene),
        ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => connection_lost(Cause::ClosedBeforeResponse, scene),
        _ => match clues.text {
            Some(TextFacts::ContentCoding) => Cause::ContentCoding.into(),
            Some(TextFacts::ChunkFraming) => Cause::TransferCoding.into(),
            _ => Cause::Unknown.into(),
        },
    };
    with_errno(verdict, Some(io))
}

/// Classifies the loss of a connection before the head was complete, by the connection's counters.
fn connection_lost(otherwise: Cause, scene: &AttemptContext) -> Classification {
    let Some(wire) = scene.wire else {
        return otherwise.into();
    };
    if let Some(verdict) = unknown_error(scene) {
        return verdict;
    }
    let counted = |cause: Cause| Classification::new(cause).replay(Replay::IdempotentOnly, Evidence::Counted);
    if wire.multiplexed {
        counted(otherwise)
    } else if wire.read > 0 {
        counted(Cause::IncompleteHead)
    } else if wire.written == 0 {
        not_sent(Cause::NotDispatched, Evidence::NothingWritten)
    } else if wire.served > 0 {
        counted(Cause::StaleConnection)
    } else {
        counted(otherwise)
    }
}

/// Whether the peer's first bytes are another protocol than HTTP.
fn unknown_error(scene: &AttemptContext) -> Option<Classification> {
    let wire = scene.wire.filter(|wire| wire.read > 0)?;
    let name = foreign_protocol(&wire)?;
    Some(Classification::new(Cause::WrongProtocol).detail(Detail::Text(name)))
}

fn foreign_protocol(wire: &WireSnapshot) -> Option<&'static str> {
    let first = wire.first_bytes();
    let http = b"HTTP/";
    if wire.multiplexed {
        return first.starts_with(http).then_some("the peer speaks HTTP/1");
    }
    // a truncated status line is not another protocol
    if http.starts_with(&first[..first.len().min(http.len())]) {
        return None;
    }
    Some(match first {
        [0x15 | 0x16, 3, ..] => "the peer speaks TLS",
        _ if begins_h2(first) => "the peer speaks HTTP/2",
        [b'S', b'S', b'H', b'-', ..] => "the peer speaks SSH",
        [b'2', b'2', b'0', b' ' | b'-', ..] => "the peer speaks SMTP or FTP",
        // a misspelled protocol name followed by a version is still meant as HTTP
        [_, _, _, _, b'/', b'0'..=b'9', ..] => return None,
        _ => "the peer does not speak HTTP",
    })
}

fn not_sent(cause: Cause, evidence: Evidence) -> Classification {
    Classification::new(cause).replay(Replay::NotSent, evidence)
}

fn with_errno(verdict: Classification, io: Option<IoFacts>) -> Classification {
    match io.and_then(|io| io.errno) {
        Some(errno) => verdict.detail(Detail::Errno(errno)),
        None => verdict,
    }
}
