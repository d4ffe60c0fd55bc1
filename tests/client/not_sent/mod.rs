//! "Not sent" is reported only with proof from the connection.
//!
//! [`wire`] is a connection in memory that is cut at every byte of both directions; [`cuts`] is the property over it,
//! and [`guesses`] are errors that only look like a proof.

#![allow(unreachable_pub)]

mod cuts;
mod guesses;
mod wire;
