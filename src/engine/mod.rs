//! What middleware and the driver tell each other: contexts, components, timeouts, progress.

// on the path of every call: measured
#![allow(clippy::inline_always)]

mod call;
mod detachable;
mod entry;
mod handle;
mod limits;
mod part;
mod sight;
mod sweep;
mod tunnel;
mod upgrade;

pub(crate) use self::detachable::{Detach, Detachable};
pub(crate) use self::handle::{Handle, Held};
pub(crate) use self::limits::{BodyLimits, Finding, Head, Limits};
pub(crate) use self::part::{Abandon, Outcome, Part, Refusal, Shown};
#[cfg(feature = "client")]
pub(crate) use self::sight::sign;
pub(crate) use self::sight::{Sight, UploadSight, ask, leave, leaving, tell};
pub(crate) use self::sweep::{CLIENT_IDLE, Expired, Sweep, Sweepable, Swept};
pub(crate) use self::upgrade::asks_for_upgrade;

pub use self::call::{Call, Kind};
pub use self::tunnel::{Tunnel, TunnelEnd};
