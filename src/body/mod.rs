//! Bodies: the upstream's or a local one, and the caller's under watch or kept to be sent again.

mod answer;
mod bounds;
mod kept;
mod length;
mod replay;
mod slot;
mod upload;

pub use self::answer::AnswerBody;
pub use self::bounds::{Accepts, LocalBody};
pub(crate) use self::length::{Length, content_length, is_plain_number};
pub use self::replay::{Replay, ReplayBody, Revoked};
pub(crate) use self::upload::Progress;
pub use self::upload::Upload;
