//! From clues to a verdict: one function for each side of the response head.

use std::io::ErrorKind;

use super::clues::{Clues, H2, Hyper, Io, Text, Tls};
use super::stamp::Wire;
use super::verdict::{Scene, Upload, Verdict};
use crate::cause::BadGatewayCause as Cause;
use crate::cause::{Detail, Evidence, Phase, Replay};

/// Alerts about the client's certificate or its absence (RFC 8446 section 6.2).
///
/// A server sends them when it has processed the client's `Certificate` message, before the handshake ends for it, and hands
/// no application data up before that, whatever of it has arrived (sections 2 and 4.4.2.4; clients here send no early data).
/// `access_denied` (49) is not among them: what decides on access may have read the request.
const REFUSALS: [u8; 7] = [42, 43, 44, 45, 46, 48, 116];
const REFUSED_STREAM: u32 = 7;

/// Judges an error that came instead of a response head.
pub(super) fn before_head(clues: &Clues, scene: &Scene) -> Verdict {
    let scene = &as_spoken(clues, *scene);
    if let Some(verdict) = our_own(clues, scene) {
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
        Some(Text::NameTimeout) => return Cause::DnsTimeout.into(),
        Some(Text::NameNotFound) => return Cause::DnsNotFound.into(),
        Some(Text::NameFailure) => return Cause::DnsFailure.into(),
        _ => {}
    }
    if let Some(h2) = clues.h2 {
        if h2 != H2::Io {
            return judge_h2(h2, scene);
        }
    }
    match clues.hyper {
        Some(Hyper::Canceled) => match foreign(scene) {
            Some(verdict) => verdict,
            None => unsent(Cause::NotDispatched, Evidence::Returned),
        },
        // the words of a connection, not of a request
        Some(Hyper::Unexpected) => foreign(scene).unwrap_or(Cause::NotDispatched.into()),
        Some(Hyper::Closed) => Cause::NotDispatched.into(),
        Some(Hyper::TooLarge) => Cause::HeadTooLarge.into(),
        Some(Hyper::Parse) => foreign(scene).unwrap_or(Cause::InvalidResponse.into()),
        Some(Hyper::Timeout) => Cause::PeerUnresponsive.into(),
        Some(Hyper::Incomplete) => lost(Cause::ClosedBeforeResponse, scene),
        _ => judge_io(clues, scene),
    }
}

/// Notes that a connection spoke HTTP/2 where its maker did not: hyper-util's pool tells only of ALPN.
fn as_spoken(clues: &Clues, mut scene: Scene) -> Scene {
    // what an HTTP/1 parser had met and refused is the answer of another protocol
    let refused = matches!(clues.hyper, Some(Hyper::Parse | Hyper::Canceled | Hyper::Unexpected));
    if let Some(wire) = &mut scene.wire {
        wire.multiplexed |= clues.h2.is_some() || (!refused && begins_h2(wire.first_bytes()));
    }
    scene
}

/// The first frame of an HTTP/2 connection is SETTINGS, on stream 0 (RFC 9113 section 3.4).
fn begins_h2(first: &[u8]) -> bool {
    matches!(first, [0, 0, _, 4, ..])
}

/// Judges an error in a response body, whose head was good.
pub(super) fn in_body(clues: &Clues, scene: &Scene) -> Verdict {
    if let Some(failure) = &clues.failure {
        return Verdict::new(failure.cause());
    }
    // without an error of the upstream's, our side failed as it wrote: as a rule, because the client's upload did
    let cannot_write = clues.hyper == Some(Hyper::WriteFailed) || matches!(clues.h2, Some(H2::Cancelled(_)));
    let cause = match clues.text {
        _ if scene.upload == Upload::Failed => Cause::RequestBodyFailed,
        _ if cannot_write && scene.upload == Upload::Unwatched => Cause::RequestBodyFailed,
        Some(Text::LengthLimit) => Cause::BodyTooLarge,
        Some(Text::ChunkFraming) => Cause::TransferCoding,
        Some(Text::TrailersTooLarge) => Cause::TrailerTooLarge,
        Some(Text::Trailers) => Cause::InvalidResponse,
        Some(Text::ContentCoding) => Cause::ContentCoding,
        Some(Text::BodyTimeout) => Cause::BodyReadTimeout,
        _ if clues.elapsed => Cause::BodyReadTimeout,
        _ if clues.hyper == Some(Hyper::Timeout) => Cause::PeerUnresponsive,
        _ if clues.io.is_some_and(|io| io.kind == ErrorKind::TimedOut) => Cause::BodyReadTimeout,
        _ if clues.hyper.is_some() || clues.io.is_some() || clues.h2.is_some() || clues.tls.is_some() => {
            Cause::IncompleteBody
        }
        _ => Cause::Unknown,
    };
    let verdict = Verdict::new(cause).phase(Phase::Body).replay(Replay::Never, Evidence::Inferred);
    match clues.h2 {
        Some(H2::GoAway(code) | H2::Reset(code) | H2::Ours(code) | H2::Cancelled(code)) => {
            verdict.detail(Detail::H2(code))
        }
        _ => with_errno(verdict, clues.io),
    }
}

/// Faults on our side of the connection, which carry the upstream's words further down.
fn our_own(clues: &Clues, scene: &Scene) -> Option<Verdict> {
    if scene.upload == Upload::Failed {
        return Some(Cause::RequestBodyFailed.into());
    }
    if clues.h2 == Some(H2::User) {
        return Some(unsent(Cause::GatewayInternal, Evidence::LocalRefusal));
    }
    if let Some(H2::Cancelled(code)) = clues.h2 {
        let cause = if scene.upload == Upload::Sound { Cause::GatewayInternal } else { Cause::RequestBodyFailed };
        return Some(Verdict::new(cause).detail(Detail::H2(code)));
    }
    let cause = match (clues.hyper, clues.text) {
        (Some(Hyper::User), _) if scene.upload == Upload::Sound => Cause::GatewayInternal,
        (Some(Hyper::User), _) => Cause::RequestBodyFailed,
        (Some(Hyper::TaskGone), _) => Cause::GatewayInternal,
        (_, Some(Text::Overloaded)) => Cause::GatewayOverload,
        (_, Some(Text::BadTarget)) => Cause::InvalidTarget,
        _ => return None,
    };
    Some(match cause {
        Cause::GatewayOverload => unsent(cause, Evidence::LocalRefusal),
        Cause::InvalidTarget if clues.typed => unsent(cause, Evidence::LocalRefusal),
        _ => cause.into(),
    })
}

/// The TCP connection stood, TLS did not: a reset or an end is the handshake's.
// `TlsConnector` alone asks
#[cfg_attr(not(all(feature = "client", feature = "rustls")), allow(dead_code))]
pub(super) fn handshaking(clues: &Clues) -> Verdict {
    match clues.tls {
        Some(tls) => shaking(tls),
        None => with_errno(unsent(Cause::TlsFailed, Evidence::NoConnection).phase(Phase::Tls), clues.io),
    }
}

/// No connection was had: whatever went wrong, the request was not sent.
pub(super) fn connecting(clues: &Clues) -> Verdict {
    if let Some(tls) = clues.tls {
        return shaking(tls);
    }
    if let Some(Text::BadTarget) = clues.text {
        return unsent(Cause::InvalidTarget, Evidence::LocalRefusal);
    }
    let in_dns = clues.dns || matches!(clues.text, Some(Text::NameNotFound | Text::NameFailure | Text::NameTimeout));
    let timed_out = clues.elapsed || clues.io.is_some_and(|io| io.kind == ErrorKind::TimedOut);
    let cause = match (clues.text, clues.io) {
        (Some(Text::NameNotFound), _) => Cause::DnsNotFound,
        (Some(Text::NameTimeout), _) => Cause::DnsTimeout,
        _ if in_dns && timed_out => Cause::DnsTimeout,
        _ if in_dns => Cause::DnsFailure,
        _ if timed_out => Cause::ConnectTimeout,
        (_, Some(io)) => refused_by(io, clues.tcp),
        _ => Cause::ConnectFailed,
    };
    with_errno(unsent(cause, Evidence::NoConnection), clues.io)
}

/// What the operating system's answer to a connect means; `tcp` says that nothing ran on top of it yet.
fn refused_by(io: Io, tcp: bool) -> Cause {
    // ENOMEM, ENFILE, EMFILE, EADDRNOTAVAIL, ENOBUFS
    const GATEWAY: [i32; 5] = [12, 23, 24, 99, 105];
    match (io.kind, io.errno) {
        (_, Some(errno)) if GATEWAY.contains(&errno) => Cause::GatewayResources,
        // a Unix socket that is not there is a closed port
        (ErrorKind::ConnectionRefused | ErrorKind::NotFound, _) => Cause::ConnectionRefused,
        (ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied, _) => {
            Cause::Unroutable
        }
        (ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe, _) if !tcp => Cause::TlsFailed,
        _ => Cause::ConnectFailed,
    }
}

/// The handshake was not over for us: nothing was written but its own messages.
fn shaking(tls: Tls) -> Verdict {
    named_tls(tls, |cause| unsent(cause, Evidence::NoConnection))
}

/// The handshake was over for us, if it was one at all, and the request may have been written.
fn judge_tls(tls: Tls, scene: &Scene) -> Verdict {
    // alerts may come at any time: only in a connection's first flight they belong to the handshake
    let first_flight = scene.wire.is_some_and(|wire| wire.served == 0 && wire.read == 0);
    match tls {
        Tls::Alert(alert) if first_flight && REFUSALS.contains(&alert) => {
            named_tls(tls, |cause| unsent(cause, Evidence::TlsRefusal))
        }
        _ => named_tls(tls, Verdict::new),
    }
}

fn named_tls(tls: Tls, verdict: impl FnOnce(Cause) -> Verdict) -> Verdict {
    let (cause, detail) = match tls {
        Tls::Certificate => (Cause::TlsCertificate, None),
        Tls::Alert(alert) => (Cause::TlsAlert, Some(Detail::TlsAlert(alert))),
        Tls::Foreign => (Cause::TlsFailed, Some(Detail::Text("the peer does not speak TLS"))),
        Tls::Other => (Cause::TlsFailed, None),
    };
    let verdict = verdict(cause).phase(Phase::Tls);
    detail.map_or(verdict, |detail| verdict.detail(detail))
}

fn judge_h2(h2: H2, scene: &Scene) -> Verdict {
    let (H2::GoAway(code) | H2::Reset(code) | H2::Ours(code)) = h2 else { return Cause::Unknown.into() };
    let verdict = match h2 {
        H2::GoAway(_) => unsent(Cause::StreamRefused, Evidence::GoAway),
        H2::Reset(REFUSED_STREAM) => unsent(Cause::StreamRefused, Evidence::RefusedStream),
        H2::Reset(_) => Cause::StreamReset.into(),
        // what the peer speaks says more than the code we ended it with
        _ => match foreign(scene) {
            Some(verdict) => return verdict,
            None => Cause::InvalidResponse.into(),
        },
    };
    verdict.detail(Detail::H2(code))
}

/// I/O errors without a connecting phase, and whatever is left.
fn judge_io(clues: &Clues, scene: &Scene) -> Verdict {
    let Some(io) = clues.io else {
        return match clues.text {
            _ if clues.elapsed => Cause::DeadlineExceeded.into(),
            Some(Text::LengthLimit) => Cause::BodyTooLarge.into(),
            Some(Text::BodyTimeout) => Cause::BodyReadTimeout.into(),
            Some(Text::ContentCoding) => Cause::ContentCoding.into(),
            Some(Text::ChunkFraming) => Cause::TransferCoding.into(),
            _ if clues.h2 == Some(H2::Io) => lost(Cause::ClosedBeforeResponse, scene),
            _ => Cause::Unknown.into(),
        };
    };
    // any service can say these of a file, of its database, of a connection that had stood: none of them proves anything
    let verdict: Verdict = match io.kind {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => Cause::ConnectionRefused.into(),
        ErrorKind::AddrNotAvailable => Cause::GatewayResources.into(),
        _ if io.errno.is_some_and(|errno| [23, 24].contains(&errno)) => Cause::GatewayResources.into(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Cause::Unroutable.into(),
        ErrorKind::TimedOut if scene.wire.is_some() || clues.hyper.is_some() => Cause::PeerUnresponsive.into(),
        ErrorKind::TimedOut => Cause::ConnectTimeout.into(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => lost(Cause::ResetBeforeResponse, scene),
        ErrorKind::BrokenPipe if io.errno.is_some() => lost(Cause::ResetBeforeResponse, scene),
        ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => lost(Cause::ClosedBeforeResponse, scene),
        _ => match clues.text {
            Some(Text::ContentCoding) => Cause::ContentCoding.into(),
            Some(Text::ChunkFraming) => Cause::TransferCoding.into(),
            _ => Cause::Unknown.into(),
        },
    };
    with_errno(verdict, Some(io))
}

/// The connection was lost before the head was whole: the counters tell how.
fn lost(otherwise: Cause, scene: &Scene) -> Verdict {
    let Some(wire) = scene.wire else {
        return otherwise.into();
    };
    if let Some(verdict) = foreign(scene) {
        return verdict;
    }
    let counted = |cause: Cause| Verdict::new(cause).replay(Replay::IdempotentOnly, Evidence::Counted);
    if wire.multiplexed {
        counted(otherwise)
    } else if wire.read > 0 {
        counted(Cause::IncompleteHead)
    } else if wire.written == 0 {
        unsent(Cause::NotDispatched, Evidence::NothingWritten)
    } else if wire.served > 0 {
        counted(Cause::StaleConnection)
    } else {
        counted(otherwise)
    }
}

/// The peer's first bytes are no HTTP: it speaks something else.
fn foreign(scene: &Scene) -> Option<Verdict> {
    let wire = scene.wire.filter(|wire| wire.read > 0)?;
    let name = foreign_protocol(&wire)?;
    Some(Verdict::new(Cause::WrongProtocol).detail(Detail::Text(name)))
}

fn foreign_protocol(wire: &Wire) -> Option<&'static str> {
    let first = wire.first_bytes();
    let http = b"HTTP/";
    if wire.multiplexed {
        return first.starts_with(http).then_some("the peer speaks HTTP/1");
    }
    // a status line that was cut is no other protocol
    if http.starts_with(&first[..first.len().min(http.len())]) {
        return None;
    }
    Some(match first {
        [0x15 | 0x16, 3, ..] => "the peer speaks TLS",
        _ if begins_h2(first) => "the peer speaks HTTP/2",
        [b'S', b'S', b'H', b'-', ..] => "the peer speaks SSH",
        [b'2', b'2', b'0', b' ' | b'-', ..] => "the peer speaks SMTP or FTP",
        // a misspelt protocol name followed by a version is still meant as HTTP
        [_, _, _, _, b'/', b'0'..=b'9', ..] => return None,
        _ => "the peer does not speak HTTP",
    })
}

fn unsent(cause: Cause, evidence: Evidence) -> Verdict {
    Verdict::new(cause).replay(Replay::NotSent, evidence)
}

fn with_errno(verdict: Verdict, io: Option<Io>) -> Verdict {
    match io.and_then(|io| io.errno) {
        Some(errno) => verdict.detail(Detail::Errno(errno)),
        None => verdict,
    }
}
