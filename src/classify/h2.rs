//! Reads `h2::Error`.

use super::clues::H2;

pub(super) fn read(error: &h2::Error) -> H2 {
    let Some(reason) = error.reason() else { return H2::Io };
    let code = u32::from(reason);
    if !error.is_remote() {
        return H2::Ours(code);
    }
    // a GOAWAY that reaches a stream's future left that stream out (RFC 9113 section 6.8)
    if error.is_go_away() { H2::GoAway(code) } else { H2::Reset(code) }
}
