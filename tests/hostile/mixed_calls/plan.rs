//! What happens in each exchange, derived from its number.

use bytes::Bytes;
use http::Method;

/// Added to an exchange's number: the request that is pipelined behind it.
pub(crate) const PIPELINED: u64 = 1 << 40;

/// The plans of a run.
#[derive(Clone, Copy)]
pub(crate) struct Plans {
    seed: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) number: u64,
    pub(crate) method: Method,
    /// The request body's length.
    pub(crate) upload: usize,
    pub(crate) chunked_upload: bool,
    /// Whether an HTTP/1.1 client expects `100 Continue`, for which it does not wait.
    pub(crate) expects_continue: bool,
    pub(crate) status: u16,
    /// The response body's length.
    pub(crate) download: usize,
    pub(crate) framing: Framing,
    /// Interim responses before the final one.
    pub(crate) interim: usize,
    pub(crate) upstream: Upstream,
    pub(crate) client: Client,
}

/// How a response body ends over HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    Chunked,
    ChunkedWithTrailer,
    /// By the end of the connection.
    Close,
}

/// What the upstream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upstream {
    Respond,
    /// Responds, and ends the connection without saying so.
    CloseAfterwards,
    /// Ends the exchange without a response the first time.
    LoseFirst,
    /// Refuses the first request unprocessed, which HTTP/2 can say.
    RefuseFirst,
    /// Responds before it reads the request body.
    RespondEarly,
    /// Ends in the middle of the response body.
    Cut,
}

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Read,
    CancelUpload,
    CancelBeforeHead,
    CancelDownload,
    /// Sends another request before it reads the response.
    Pipeline,
}

impl Plan {
    /// The number of body bytes in the response, which has none to HEAD.
    pub(crate) fn expected(&self) -> usize {
        if self.method == Method::HEAD { 0 } else { self.download }
    }

    pub(crate) fn path(&self) -> String {
        format!("/e/{}", self.number)
    }
}

/// Sebastiano Vigna's splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Plans {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed: mix(seed) }
    }

    pub(crate) fn get(self, number: u64) -> Plan {
        let mut state = mix(self.seed ^ number);
        // below a bound that is small
        let mut roll = |bound: u64| {
            state = mix(state);
            usize::try_from(state % bound).unwrap()
        };
        let mut method = match roll(100) {
            0..50 => Method::GET,
            50..78 => Method::POST,
            78..86 => Method::HEAD,
            86..94 => Method::PUT,
            _ => Method::DELETE,
        };
        let mut client = match roll(100) {
            0..80 => Client::Read,
            80..85 => Client::CancelUpload,
            85..90 => Client::CancelBeforeHead,
            90..95 => Client::CancelDownload,
            _ => Client::Pipeline,
        };
        if number & PIPELINED != 0 {
            (method, client) = (Method::GET, Client::Read);
        }
        let upstream = match roll(100) {
            0..74 => Upstream::Respond,
            74..81 => Upstream::CloseAfterwards,
            81..86 => Upstream::LoseFirst,
            86..90 => Upstream::RefuseFirst,
            90..95 => Upstream::RespondEarly,
            _ => Upstream::Cut,
        };
        let status = match (method == Method::GET, roll(20)) {
            (_, 0) => 204,
            (true, 1) => 304,
            (_, 2) => 404,
            _ => 200,
        };
        let framing = match roll(10) {
            0..5 => Framing::Length,
            5..7 => Framing::Chunked,
            7..9 => Framing::ChunkedWithTrailer,
            _ => Framing::Close,
        };
        // the end of a connection cannot say that a body was cut (RFC 9112 section 8)
        let framing = match framing {
            Framing::Close if upstream == Upstream::Cut => Framing::Length,
            framing => framing,
        };
        let has_upload = method == Method::POST || method == Method::PUT;
        let length = |roll: &mut dyn FnMut(u64) -> usize| match roll(10) {
            0 => 0,
            1..7 => roll(1 << 10),
            7..9 => roll(16 << 10),
            _ => roll(64 << 10),
        };
        let (upload, download) = (length(&mut roll), length(&mut roll));
        Plan {
            number,
            upload: if has_upload { upload } else { 0 },
            chunked_upload: has_upload && roll(2) == 0,
            expects_continue: has_upload && roll(8) == 0,
            method,
            status,
            download: if status == 204 || status == 304 { 0 } else { download },
            framing,
            interim: roll(8).saturating_sub(4),
            upstream,
            client,
        }
    }

    /// The body of an exchange's request.
    pub(crate) fn upload(self, plan: &Plan) -> Bytes {
        self.body(plan.number ^ (1 << 50), plan.upload)
    }

    /// The body of an exchange's response.
    pub(crate) fn download(self, plan: &Plan) -> Bytes {
        self.body(plan.number, plan.download)
    }

    fn body(self, number: u64, length: usize) -> Bytes {
        let mut state = mix(self.seed.wrapping_add(mix(number)));
        let mut body = Vec::with_capacity(length + 8);
        while body.len() < length {
            state = mix(state);
            body.extend(state.to_le_bytes());
        }
        body.truncate(length);
        body.into()
    }
}
