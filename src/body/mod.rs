//! Bodies the layers hand on.

mod answer;

pub use self::answer::AnswerBody;
