//! Reads `hyper::Error`.

use std::error::Error;

use super::evidence::HyperFacts;

/// User and canceled come first: a client's broken upload carries `ConnectionReset` further down.
pub(super) fn read(error: &hyper::Error) -> HyperFacts {
    if error.is_user() {
        // hyper calls a vanished connection task the user's fault too; only the text differs
        let gone = error.source().is_some_and(|source| source.to_string().contains("dispatch task"));
        return if gone || error.to_string().contains("dispatch task") {
            HyperFacts::TaskGone
        } else {
            HyperFacts::User
        };
    }
    if error.is_canceled() {
        // an upgrade that did not happen is called canceled too, and its request was answered
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
    // the predicates for these two need hyper's server feature, or do not exist
    match error.to_string().as_str() {
        "message head is too large" => HyperFacts::TooLarge,
        "received unexpected message from connection" => HyperFacts::Unexpected,
        // what went wrong while reading is its source
        "error reading a body from connection"
            if error.source().is_some_and(|source| source.to_string() == "connection error") =>
        {
            HyperFacts::WriteFailed
        }
        _ if error.is_parse() => HyperFacts::Parse,
        _ => HyperFacts::Other,
    }
}
