//! Response bodies, upstream's or local, and request bodies that are tracked or kept for a replay.

mod bounds;
mod buffered;
mod length;
mod loan;
mod replay;
mod response;
mod upload;

pub use self::bounds::WrapBody;
pub(crate) use self::length::{Length, content_length, is_plain_number};
pub use self::replay::{BodyReclaimed, ReplayBody, ReplayHandle};
pub use self::response::ResponseBody;
pub use self::upload::TrackedUpload;
pub(crate) use self::upload::UploadCounters;

/// The error of a body of any type.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
