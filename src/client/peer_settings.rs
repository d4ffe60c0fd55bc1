//! What an HTTP/2 peer's SETTINGS announce, read from the bytes of the connection.
//!
//! hyper keeps them to itself, and lets a request above `SETTINGS_MAX_CONCURRENT_STREAMS` wait inside the connection, where
//! it looks like a request that was sent.

use tokio::sync::watch;

const HEADER: usize = 9;
const ENTRY: usize = 6;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The peer's settings as far as the pool needs them (RFC 9113 section 6.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerSettings {
    /// The peer's first frame has come.
    pub(crate) received: bool,
    /// How many streams the peer accepts at a time; `None` while it announces no limit.
    pub(crate) max_concurrent_streams: Option<u32>,
    /// The largest head that the peer accepts, in bytes; `None` while it announces no limit.
    pub(crate) max_header_list_size: Option<u32>,
}

/// Follows the frames that a peer sends, in any pieces, and publishes its settings.
///
/// It keeps one frame header and one entry. Frames of other types are skipped by their length.
#[derive(Debug)]
pub(super) struct SettingsReader {
    header: [u8; HEADER],
    in_header: usize,
    entry: [u8; ENTRY],
    in_entry: usize,
    /// Bytes of the payload that are still to come.
    payload: u32,
    in_settings: bool,
    /// The first frame was not SETTINGS (RFC 9113 section 3.4): the bytes are no frames.
    foreign: bool,
    settings: PeerSettings,
    published: watch::Sender<PeerSettings>,
}

impl SettingsReader {
    pub(super) fn new() -> (Self, watch::Receiver<PeerSettings>) {
        let settings = PeerSettings::default();
        let (published, receiver) = watch::channel(settings);
        let reader = Self {
            header: [0; HEADER],
            in_header: 0,
            entry: [0; ENTRY],
            in_entry: 0,
            payload: 0,
            in_settings: false,
            foreign: false,
            settings,
            published,
        };
        (reader, receiver)
    }

    /// Takes the next bytes of the connection.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.foreign {
            if self.payload == 0 {
                bytes = self.read_header(bytes);
                continue;
            }
            let length = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at(length);
            if self.in_settings {
                self.read_entries(payload);
            }
            self.payload -= u32::try_from(length).unwrap_or(self.payload);
            self.frame_may_end();
            bytes = rest;
        }
    }

    fn read_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (piece, rest) = bytes.split_at(bytes.len().min(HEADER - self.in_header));
        self.header[self.in_header..self.in_header + piece.len()].copy_from_slice(piece);
        self.in_header += piece.len();
        if self.in_header < HEADER {
            return rest;
        }
        let [length @ .., kind, flags, _, _, _, _] = self.header;
        let [high, middle, low] = length;
        self.in_header = 0;
        self.in_entry = 0;
        self.payload = u32::from_be_bytes([0, high, middle, low]);
        self.in_settings = kind == SETTINGS && flags & ACK == 0;
        if !self.settings.received {
            self.settings.received = true;
            self.foreign = !self.in_settings;
            if self.foreign {
                self.publish();
                return rest;
            }
        }
        self.frame_may_end();
        rest
    }

    fn read_entries(&mut self, payload: &[u8]) {
        for byte in payload {
            self.entry[self.in_entry] = *byte;
            self.in_entry += 1;
            if self.in_entry == ENTRY {
                self.in_entry = 0;
                let [identifier @ .., a, b, c, d] = self.entry;
                let value = Some(u32::from_be_bytes([a, b, c, d]));
                match u16::from_be_bytes(identifier) {
                    MAX_CONCURRENT_STREAMS => self.settings.max_concurrent_streams = value,
                    MAX_HEADER_LIST_SIZE => self.settings.max_header_list_size = value,
                    _ => {}
                }
            }
        }
    }

    /// At the end of a SETTINGS frame its values apply (RFC 9113 section 6.5.3).
    fn frame_may_end(&mut self) {
        if self.payload == 0 && self.in_settings {
            self.in_settings = false;
            self.publish();
        }
    }

    fn publish(&self) {
        let settings = self.settings;
        self.published.send_if_modified(|published| std::mem::replace(published, settings) != settings);
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

    fn read(bytes: &[u8], piece: usize) -> PeerSettings {
        let (mut reader, published) = SettingsReader::new();
        bytes.chunks(piece).for_each(|piece| reader.read(piece));
        *published.borrow()
    }

    fn received(streams: Option<u32>, head: Option<u32>) -> PeerSettings {
        PeerSettings { received: true, max_concurrent_streams: streams, max_header_list_size: head }
    }

    #[test]
    fn the_last_value_of_each_setting_holds() {
        let mut bytes = settings(&[(4, 65_535), (3, 100), (6, 8192)]);
        bytes.extend(frame(0, 0, 1, &vec![7; 70_000]));
        bytes.extend(frame(SETTINGS, ACK, 0, &[]));
        for piece in [1, 5, 9, 4096] {
            assert_eq!(read(&bytes, piece), received(Some(100), Some(8192)));
        }
        bytes.extend(settings(&[(3, 7), (3, 0)]));
        assert_eq!(read(&bytes, 64), received(Some(0), Some(8192)));
    }

    #[test]
    fn an_empty_settings_frame_announces_no_limit() {
        assert_eq!(read(&settings(&[]), 3), received(None, None));
        assert_eq!(read(&[], 1), PeerSettings::default(), "nothing has come yet");
    }

    #[test]
    fn settings_apply_at_the_end_of_their_frame() {
        let bytes = settings(&[(3, 1), (6, 2)]);
        assert_eq!(read(&bytes[..bytes.len() - 1], 1), PeerSettings::default());
    }

    #[test]
    fn another_protocol_announces_nothing_and_is_not_waited_for() {
        let mut bytes = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
        bytes.extend(settings(&[(3, 1)]));
        assert_eq!(read(&bytes, 1), received(None, None));
    }

    proptest! {
        #[test]
        fn the_pieces_in_which_bytes_come_make_no_difference(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(4)], 0..400),
            piece in 1usize..40,
            limit in any::<u32>(),
        ) {
            let mut whole = settings(&[(3, limit)]);
            whole.extend(bytes);
            prop_assert_eq!(read(&whole, piece), read(&whole, usize::MAX));
        }
    }
}
