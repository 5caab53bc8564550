//! Netlink's wire format (netlink(7)): messages of nested attributes, written and read.
//!
//! It knows no message of any subsystem, and trusts no length that it reads.

/// A message starts with its length, type, flags, sequence number and port.
pub(crate) const HEADER_BYTES: usize = 16;
const FLAGS_AT: usize = 6;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// The two highest bits of an attribute's type say how its value is coded.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

/// Messages, one behind the other.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Writer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `family_header` is what the subsystem puts between netlink's header and the attributes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family_header: &[u8],
        attributes: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        // The port of the sender; 0 lets the kernel fill it in.
        self.bytes.extend([0; 4]);
        self.bytes.extend(family_header);
        self.pad();
        attributes(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Of the last message.
    pub(crate) fn ask_for_acknowledgement(&mut self) {
        let at = self.last + FLAGS_AT;
        if let Some(flags) = u16_at(&self.bytes, at) {
            let flags = flags | libc::NLM_F_ACK as u16;
            self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len())
            .expect("only lists can grow, and their writers split them");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    pub fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | libc::NLA_F_NESTED as u16).to_ne_bytes());
        content(self);
        let length = u16::try_from(self.bytes.len() - start)
            .expect("only lists can grow, and their writers split them");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Numbers are big-endian in netfilter's subsystems.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(crate) fn string(&mut self, kind: u16, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value);
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message as it was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Of the socket that caused it; 0 is the kernel.
    pub(crate) port: u32,
    /// Everything behind netlink's header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a family header of this size.
    pub(crate) fn attributes(&self, family_header_bytes: usize) -> Attributes<'a> {
        Attributes(self.body.get(family_header_bytes..).unwrap_or_default())
    }
}

/// The messages in what one receive call returned.
#[derive(Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32_at(self.0, 0)? as usize;
        let body = self.0.get(HEADER_BYTES..length)?;
        let message = Message {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            sequence: u32_at(self.0, 8)?,
            port: u32_at(self.0, 12)?,
            body,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// The attributes of a message or of a nest: type and value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        { self }.find_map(|(found, value)| (found == kind).then_some(value))
    }

    pub fn nest(self, kind: u16) -> Attributes<'a> {
        Self(self.find(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & ATTRIBUTE_TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER_BYTES..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A big-endian number of at most 8 bytes.
pub(crate) fn be(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Text as netlink sends it, with a zero byte at its end.
pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut writer = Writer::default();
        writer.message(7, 0, 3, &[1, 2, 3, 4], |w| {
            w.string(1, "table");
            w.nest(2, |w| {
                w.be32(5, 0x0102_0304);
                w.attribute(6, &[9]);
            });
        });
        writer.message(8, 0, 4, &[], |_| {});
        let messages: Vec<Message> = Messages(writer.bytes()).collect();
        assert_eq!(messages.iter().map(|m| (m.kind, m.sequence)).collect::<Vec<_>>(), [(7, 3), (8, 4)]);
        let attributes = messages[0].attributes(4);
        assert_eq!(attributes.find(1).map(text), Some("table"));
        assert_eq!(attributes.nest(2).find(5).map(be), Some(0x0102_0304));
        assert_eq!(attributes.nest(2).find(6), Some(&[9][..]));
        assert_eq!(attributes.find(9), None);
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        let mut writer = Writer::default();
        writer.message(7, 0, 1, &[], |w| w.attribute(1, &[1, 2, 3, 4]));
        let good = writer.bytes().to_vec();
        for (at, value) in [(0, 200_u8), (0, 3), (16, 200), (16, 1), (16, 0)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let n_attributes: usize = Messages(&bytes).map(|m| m.attributes(0).count()).sum();
            assert_eq!(n_attributes, 0, "byte {at} = {value}");
        }
        for length in 0..good.len() {
            assert_eq!(Messages(&good[..length]).count(), 0, "{length} bytes");
        }
    }
}
