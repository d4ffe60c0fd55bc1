//! Reads the frames of an HTTP/2 peer in addition to hyper, which does not expose their contents.
//!
//! hyper drops interim responses unseen, and lets a request above `SETTINGS_MAX_CONCURRENT_STREAMS` wait inside the
//! connection, where it looks like a request that was sent. The code of a GOAWAY does not reach the streams that end with
//! the connection.

/// The length of a frame's header (RFC 9113 section 4.1).
const HEADER: usize = 9;
/// The length of one setting (RFC 9113 section 6.5.1).
const SETTING: usize = 6;
/// The length of the fields read from a GOAWAY: the last stream and the code (RFC 9113 section 6.8).
const GOAWAY_FIELDS: usize = 8;
/// The number of streams whose heads are counted. A new stream takes the place of the one opened this many streams
/// before, which usually has its head by then.
const STREAMS: usize = 32;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The announcements of an HTTP/2 peer (RFC 9113 sections 6.5.2 and 6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerState {
    /// The peer's first frame has come, or bytes that are not HTTP/2.
    pub(crate) received: bool,
    /// The number of streams that the peer accepts at a time; `None` while it announces no limit.
    pub(crate) max_concurrent_streams: Option<u32>,
    /// The largest head that the peer accepts, in bytes; `None` while it announces no limit.
    pub(crate) max_header_list_size: Option<u32>,
    /// The code of the last GOAWAY: the peer accepts no further stream.
    pub(crate) goaway: Option<u32>,
}

/// Follows the frames of a connection, in pieces of any size: counts the heads of each stream, and reads SETTINGS and
/// GOAWAY.
///
/// A head before the final one neither ends its stream nor has DATA before it (RFC 9113 section 8.1). Frames of other types
/// are skipped by their length.
#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    /// The received part of the current frame's header.
    header: [u8; HEADER],
    header_read: usize,
    payload_left: usize,
    /// The current setting, or the beginning of a GOAWAY, as far as received.
    fields: [u8; GOAWAY_FIELDS],
    fields_read: usize,
    /// `peer` with the settings of a SETTINGS frame that has not ended.
    announced: PeerState,
    peer: PeerState,
    /// The first frame was not SETTINGS (RFC 9113 section 3.4): the bytes are not HTTP/2.
    is_foreign: bool,
    /// Each stream, with the number of heads since its last DATA.
    heads: [(u32, u32); STREAMS],
}

impl Frames {
    /// Processes bytes that were read; returns the largest number of interim heads of a stream.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> u32 {
        let mut interim = 0;
        loop {
            let (payload, rest) = bytes.split_at(self.payload_left.min(bytes.len()));
            self.payload_left -= payload.len();
            match self.kind() {
                Some(SETTINGS) if !self.has_flag(ACK) => self.read_settings(payload),
                Some(GOAWAY) => self.read_goaway(payload),
                _ => {}
            }
            if self.header_read == HEADER && self.payload_left == 0 {
                interim = interim.max(self.end_frame());
                self.header_read = 0;
            }
            if rest.is_empty() || self.is_foreign {
                return interim;
            }
            bytes = self.read_header(rest);
        }
    }

    /// The announcements of the peer so far.
    #[cfg(feature = "http2")]
    pub(super) fn peer(&self) -> PeerState {
        self.peer
    }

    fn read_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (piece, rest) = bytes.split_at(bytes.len().min(HEADER - self.header_read));
        self.header[self.header_read..][..piece.len()].copy_from_slice(piece);
        self.header_read += piece.len();
        if self.header_read == HEADER {
            let [high, middle, low, ..] = self.header;
            self.payload_left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            self.fields_read = 0;
            self.is_foreign = !self.peer.received && self.kind() != Some(SETTINGS);
            self.peer.received |= self.is_foreign;
        }
        rest
    }

    /// The type of the current frame, once its header has come.
    fn kind(&self) -> Option<u8> {
        (self.header_read == HEADER).then_some(self.header[3])
    }

    fn has_flag(&self, flag: u8) -> bool {
        self.header[4] & flag != 0
    }

    fn read_settings(&mut self, payload: &[u8]) {
        for &byte in payload {
            self.fields[self.fields_read] = byte;
            self.fields_read = (self.fields_read + 1) % SETTING;
            if self.fields_read != 0 {
                continue;
            }
            let [high, low, a, b, c, d, ..] = self.fields;
            let value = Some(u32::from_be_bytes([a, b, c, d]));
            match u16::from_be_bytes([high, low]) {
                MAX_CONCURRENT_STREAMS => self.announced.max_concurrent_streams = value,
                MAX_HEADER_LIST_SIZE => self.announced.max_header_list_size = value,
                _ => {}
            }
        }
    }

    fn read_goaway(&mut self, payload: &[u8]) {
        let piece = &payload[..payload.len().min(GOAWAY_FIELDS - self.fields_read)];
        self.fields[self.fields_read..][..piece.len()].copy_from_slice(piece);
        self.fields_read += piece.len();
    }

    /// Returns the number of interim heads of the frame's stream, if the frame is a head.
    fn end_frame(&mut self) -> u32 {
        let [_, _, _, kind, _, a, b, c, d] = self.header;
        let stream = u32::from_be_bytes([a & 0x7f, b, c, d]);
        match kind {
            // at the end of the frame its values apply (RFC 9113 section 6.5.3)
            SETTINGS if !self.has_flag(ACK) => {
                self.announced.received = true;
                self.peer = self.announced;
            }
            GOAWAY if self.fields_read == GOAWAY_FIELDS => {
                let [_, _, _, _, code @ ..] = self.fields;
                self.announced.goaway = Some(u32::from_be_bytes(code));
                self.peer.goaway = self.announced.goaway;
            }
            HEADERS if !self.has_flag(END_STREAM) => {
                let slot = self.slot(stream);
                slot.1 = if slot.0 == stream { slot.1.saturating_add(1) } else { 1 };
                slot.0 = stream;
                return slot.1 - 1;
            }
            HEADERS | DATA => *self.slot(stream) = (0, 0),
            _ => {}
        }
        0
    }

    fn slot(&mut self, stream: u32) -> &mut (u32, u32) {
        // client-initiated streams have odd ids in steps of two
        &mut self.heads[(stream / 2) as usize % STREAMS]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
        let entry = |(identifier, value): &(u16, u32)| [&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat();
        frame(SETTINGS, 0, 0, &entries.iter().flat_map(entry).collect::<Vec<_>>())
    }

    fn goaway(last: u32, code: u32, debug: &[u8]) -> Vec<u8> {
        frame(GOAWAY, 0, 0, &[&last.to_be_bytes()[..], &code.to_be_bytes(), debug].concat())
    }

    /// The peer's announcements, and the largest number of interim heads of a stream.
    fn read(bytes: &[u8], piece: usize) -> (PeerState, u32) {
        let mut frames = Frames::default();
        let interim = bytes.chunks(piece).map(|piece| frames.read(piece)).max();
        (frames.peer(), interim.unwrap_or(0))
    }

    fn received(streams: Option<u32>, head: Option<u32>) -> PeerState {
        PeerState { received: true, max_concurrent_streams: streams, max_header_list_size: head, goaway: None }
    }

    #[test]
    fn the_last_value_of_each_setting_holds() {
        let mut bytes = settings(&[(4, 65_535), (3, 100), (6, 8192)]);
        bytes.extend(frame(DATA, 0, 1, &vec![7; 70_000]));
        bytes.extend(frame(SETTINGS, ACK, 0, &[]));
        for piece in [1, 5, 9, 4096] {
            assert_eq!(read(&bytes, piece).0, received(Some(100), Some(8192)));
        }
        bytes.extend(settings(&[(3, 7), (3, 0)]));
        assert_eq!(read(&bytes, 64).0, received(Some(0), Some(8192)));
    }

    #[test]
    fn an_empty_settings_frame_announces_no_limit() {
        assert_eq!(read(&settings(&[]), 3).0, received(None, None));
        assert_eq!(read(&[], 1).0, PeerState::default(), "nothing has come yet");
    }

    #[test]
    fn settings_apply_at_the_end_of_their_frame() {
        let bytes = settings(&[(3, 1), (6, 2)]);
        assert_eq!(read(&bytes[..bytes.len() - 1], 1).0, PeerState::default());
    }

    #[test]
    fn another_protocol_announces_nothing_and_is_not_waited_for() {
        for first in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0; 9]] {
            assert_eq!(read(&[first, &settings(&[(3, 1)])].concat(), 1).0, received(None, None));
        }
    }

    #[test]
    fn the_code_of_a_goaway_is_read_without_its_debug_data() {
        let bytes = [settings(&[(3, 9)]), goaway(7, 11, b"too_many_resets"), settings(&[(3, 0)])].concat();
        for piece in [1, 4, 17, 1000] {
            assert_eq!(read(&bytes, piece).0, PeerState { goaway: Some(11), ..received(Some(0), None) });
        }
        let cut = [settings(&[]), frame(GOAWAY, 0, 0, &[0; 7])].concat();
        assert_eq!(read(&cut, 3).0, received(None, None));
    }

    #[test]
    fn interim_heads_are_counted_for_each_stream() {
        let heads = |stream, count| frame(HEADERS, 4, stream, b"head").repeat(count);
        // three interim heads and the final one
        let mut bytes = [settings(&[]), heads(1, 4)].concat();
        bytes.extend(frame(DATA, END_STREAM, 1, b"data"));
        for stream in [3, 5, 7] {
            bytes.extend(heads(stream, 3));
        }
        for stream in [7, 5, 3] {
            bytes.extend([heads(stream, 1), frame(HEADERS, END_STREAM, stream, b"end")].concat());
        }
        for piece in [1, 2, 7, 1000] {
            assert_eq!(read(&bytes, piece).1, 3, "{piece}");
        }
    }

    proptest! {
        #[test]
        fn the_pieces_in_which_bytes_come_make_no_difference(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(4), Just(7)], 0..400),
            piece in 1usize..40,
            limit in any::<u32>(),
        ) {
            let mut whole = settings(&[(3, limit)]);
            whole.extend(bytes);
            prop_assert_eq!(read(&whole, piece), read(&whole, usize::MAX));
        }
    }
}
