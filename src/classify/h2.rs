//! Reads `h2::Error`.

use super::facts::H2Facts;

pub(super) fn read(error: &h2::Error) -> H2Facts {
    let Some(reason) = error.reason() else {
        return if error.is_io() { H2Facts::Io } else { H2Facts::User };
    };
    let code = u32::from(reason);
    if !error.is_remote() {
        return if error.is_library() { H2Facts::Ours(code) } else { H2Facts::Cancelled(code) };
    }
    // a GOAWAY that reaches a stream's future excluded that stream (RFC 9113 section 6.8)
    if error.is_go_away() { H2Facts::GoAway(code) } else { H2Facts::Reset(code) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Version};
    use tokio::io::duplex;

    use super::*;
    use crate::cause::{BadGatewayCause, Evidence, Failure, Replay};

    #[tokio::test]
    async fn a_request_that_h2_refuses_to_send_is_a_user_error() {
        let (io, _peer) = duplex(1 << 16);
        let (client, _connection) = h2::client::handshake(io).await.unwrap();
        let mut client: h2::client::SendRequest<Bytes> = client.ready().await.unwrap();
        let mut request = Request::get("/no-authority").body(()).unwrap();
        *request.version_mut() = Version::HTTP_2;
        let error = client.send_request(request, true).unwrap_err();
        assert_eq!(read(&error), H2Facts::User);
        let failure = Failure::from_error(error);
        assert_eq!(failure.cause(), BadGatewayCause::GatewayInternal);
        assert_eq!((failure.replay(), failure.evidence()), (Replay::NotSent, Evidence::LocalRefusal));
        assert!(!failure.cause().is_upstream_failure());
    }
}
