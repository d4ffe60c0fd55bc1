//! Bodies: the upstream's or a local one, and the caller's under watch.

mod answer;
mod upload;

pub use self::answer::AnswerBody;
pub(crate) use self::upload::Progress;
pub use self::upload::Upload;
