//! Reads `hyper::Error`.

use std::error::Error;

use super::facts::HyperFacts;

/// User and canceled errors are checked first: a client's failed upload carries `ConnectionReset` further inside.
pub(super) fn read(error: &hyper::Error) -> HyperFacts {
    if error.is_user() {
        // hyper reports a dead connection task as a user error too; only the text differs
        let gone = error.source().is_some_and(|source| source.to_string().contains("dispatch task"));
        return if gone || error.to_string().contains("dispatch task") {
            HyperFacts::TaskGone
        } else {
            HyperFacts::User
        };
    }
    if error.is_canceled() {
        // a failed upgrade is reported as canceled too, although its request got a response
        let upgrade = error.source().is_some_and(|source| source.to_string().starts_with("upgrade expected"));
        return if upgrade { HyperFacts::Other } else { HyperFacts::Canceled };
    }
    if error.is_closed() {
        return HyperFacts::Closed;
    }
    if error.is_incomplete_message() {
        return HyperFacts::Incomplete;
    }
    if error.is_timeout() {
        return HyperFacts::Timeout;
    }
    // no predicates without hyper's server feature, or none at all
    match error.to_string().as_str() {
        "message head is too large" => HyperFacts::TooLarge,
        "received unexpected message from connection" => HyperFacts::Unexpected,
        // its source says what went wrong while reading
        "error reading a body from connection"
            if error.source().is_some_and(|source| source.to_string() == "connection error") =>
        {
            HyperFacts::WriteFailed
        }
        _ if error.is_parse() => HyperFacts::Parse,
        _ => HyperFacts::Other,
    }
}
