//! What the frames of an HTTP/2 server say of heads, without their contents.

/// The length of a frame's header (RFC 9113 section 4.1).
const HEADER: usize = 9;
/// The length of one setting (RFC 9113 section 6.5.1).
const SETTING: usize = 6;
/// Streams whose heads are counted; the oldest gives way, as it has no more than one head to come as a rule.
const STREAMS: usize = 32;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Follows the frames of a connection in any pieces: counts the heads of each stream, and reads one setting.
///
/// A head before the final one neither ends its stream nor has DATA before it (RFC 9113 section 8.1), and hyper drops
/// it unseen.
#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    /// The header of the current frame, as far as it came.
    header: [u8; HEADER],
    header_read: usize,
    payload_left: usize,
    setting: [u8; SETTING],
    setting_read: usize,
    /// In the current SETTINGS frame.
    max_header_list: Option<u32>,
    settings_came: bool,
    /// What is to be taken.
    announced: Option<u32>,
    /// Each stream, and the heads that it had since its last DATA.
    heads: [(u32, u32); STREAMS],
}

impl Frames {
    /// Takes what was read; returns the most interim heads that a stream has had.
    pub(super) fn saw(&mut self, mut bytes: &[u8]) -> u32 {
        let mut interim = 0;
        loop {
            let payload = self.payload_left.min(bytes.len());
            let (read, rest) = bytes.split_at(payload);
            self.payload_left -= payload;
            if self.is_settings() {
                self.read_settings(read);
            }
            if self.header_read == HEADER && self.payload_left == 0 {
                interim = interim.max(self.end_of_frame());
                self.header_read = 0;
            }
            if rest.is_empty() {
                return interim;
            }
            let (read, rest) = rest.split_at(rest.len().min(HEADER - self.header_read));
            self.header[self.header_read..][..read.len()].copy_from_slice(read);
            self.header_read += read.len();
            if self.header_read == HEADER {
                let [high, middle, low, ..] = self.header;
                self.payload_left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            }
            bytes = rest;
        }
    }

    /// The limit of a SETTINGS frame that came since it was taken last.
    pub(super) fn take_max_header_list(&mut self) -> Option<u32> {
        self.announced.take()
    }

    fn is_settings(&self) -> bool {
        self.header_read == HEADER && self.header[3] == SETTINGS && self.header[4] & ACK == 0
    }

    fn read_settings(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.setting[self.setting_read] = byte;
            self.setting_read = (self.setting_read + 1) % SETTING;
            let [id @ .., a, b, c, d] = self.setting;
            if self.setting_read == 0 && u16::from_be_bytes(id) == MAX_HEADER_LIST_SIZE {
                self.max_header_list = Some(u32::from_be_bytes([a, b, c, d]));
            }
        }
    }

    /// The interim heads that the frame's stream has had, where it is a head.
    fn end_of_frame(&mut self) -> u32 {
        let [_, _, _, kind, flags, a, b, c, d] = self.header;
        let stream = u32::from_be_bytes([a & 0x7f, b, c, d]);
        match kind {
            SETTINGS if self.is_settings() => {
                self.setting_read = 0;
                let limit = self.max_header_list.take();
                // a later frame changes what it names, and no more
                if limit.is_some() || !self.settings_came {
                    self.announced = Some(limit.unwrap_or(u32::MAX));
                }
                self.settings_came = true;
                0
            }
            HEADERS if flags & END_STREAM == 0 => {
                let slot = self.slot(stream);
                slot.1 = if slot.0 == stream { slot.1.saturating_add(1) } else { 1 };
                slot.0 = stream;
                slot.1 - 1
            }
            HEADERS | DATA => {
                *self.slot(stream) = (0, 0);
                0
            }
            _ => 0,
        }
    }

    fn slot(&mut self, stream: u32) -> &mut (u32, u32) {
        // those of a client are odd, and go up by two
        &mut self.heads[(stream / 2) as usize % STREAMS]
    }
}
