//! Capture files in the classic pcap format, of Ethernet frames: for golden tests and traces.
//!
//! A file is a header of 24 bytes (magic number, version 2.4, snapshot length, link type 1) and
//! records of 16 bytes (seconds, fraction, captured length, original length) with the captured
//! bytes. Read in either byte order and with either fraction (`draft-ietf-opsawg-pcap`); written
//! with nanoseconds, little-endian.

use std::io::{self, Read, Write};

const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
const LINK_ETHERNET: u32 = 1;
/// Bits of the link type field; those above tell of a frame check sequence.
const LINK_MASK: u32 = 0x0fff_ffff;
/// Largest captured length that is believed.
const CAPTURE_MAX: u32 = 256 << 10;

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was captured: nanoseconds since 1970.
    pub time_ns: u64,
    /// Its length on the wire; the bytes may be fewer.
    pub wire_len: u32,
    /// Its bytes, from the destination address on.
    pub bytes: Vec<u8>,
}

/// What is wrong with a capture file.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// It does not start with a magic number of the classic format.
    #[error("not a classic pcap file (magic number {0:#010x})")]
    Magic(u32),
    /// It does not hold Ethernet frames.
    #[error("link type {0} is not Ethernet")]
    LinkType(u32),
    /// A record is longer than any frame.
    #[error("record {record} claims {len} bytes")]
    TooLong {
        /// Number of the record, from 0.
        record: u64,
        /// The length that it claims.
        len: u32,
    },
    /// It ends within a record, or cannot be read.
    #[error("record {record}: {source}")]
    Io {
        /// Number of the record, from 0.
        record: u64,
        /// What the reader says.
        #[source]
        source: io::Error,
    },
}

/// Reads the records of a capture, one by one.
#[derive(Debug)]
pub struct PcapReader<R> {
    input: R,
    swapped: bool,
    /// Nanoseconds of one unit of the fraction.
    unit_ns: u64,
    records: u64,
    ended: bool,
}

fn word(bytes: &[u8], at: usize, swapped: bool) -> u32 {
    let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if swapped {
        u32::from_be_bytes(word)
    } else {
        u32::from_le_bytes(word)
    }
}

impl<R: Read> PcapReader<R> {
    /// Reads the file's header.
    pub fn new(mut input: R) -> Result<PcapReader<R>, PcapError> {
        let mut header = [0; 24];
        input
            .read_exact(&mut header)
            .map_err(|source| PcapError::Io { record: 0, source })?;
        let magic = word(&header, 0, false);
        let (swapped, unit_ns) = match (magic, magic.swap_bytes()) {
            (MAGIC_MICROS, _) => (false, 1000),
            (MAGIC_NANOS, _) => (false, 1),
            (_, MAGIC_MICROS) => (true, 1000),
            (_, MAGIC_NANOS) => (true, 1),
            _ => return Err(PcapError::Magic(magic)),
        };
        let link = word(&header, 20, swapped) & LINK_MASK;
        if link != LINK_ETHERNET {
            return Err(PcapError::LinkType(link));
        }
        Ok(PcapReader {
            input,
            swapped,
            unit_ns,
            records: 0,
            ended: false,
        })
    }

    /// Fills as much of a record's header as there is: false at the end of the file.
    fn header(&mut self, header: &mut [u8; 16]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < header.len() {
            match self.input.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn record(&mut self) -> Result<Option<Record>, PcapError> {
        let record = self.records;
        let fail = |source| PcapError::Io { record, source };
        let mut header = [0; 16];
        if !self.header(&mut header).map_err(fail)? {
            return Ok(None);
        }
        let field = |at| word(&header, at, self.swapped);
        let (seconds, fraction, len, wire_len) = (field(0), field(4), field(8), field(12));
        if len > CAPTURE_MAX {
            return Err(PcapError::TooLong { record, len });
        }
        let mut bytes = vec![0; len as usize];
        self.input.read_exact(&mut bytes).map_err(fail)?;
        self.records += 1;
        let time_ns = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * self.unit_ns;
        Ok(Some(Record {
            time_ns,
            wire_len,
            bytes,
        }))
    }
}

impl<R: Read> Iterator for PcapReader<R> {
    type Item = Result<Record, PcapError>;

    /// The next record. After an error, none.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.record().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Writes a capture.
#[derive(Debug)]
pub struct PcapWriter<W> {
    output: W,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file's header.
    pub fn new(mut output: W) -> io::Result<PcapWriter<W>> {
        let version = 2_u32 | 4 << 16;
        for word in [MAGIC_NANOS, version, 0, 0, CAPTURE_MAX, LINK_ETHERNET] {
            output.write_all(&word.to_le_bytes())?;
        }
        Ok(PcapWriter { output })
    }

    /// Writes a frame that was seen whole, `time_ns` nanoseconds after 1970 (until 2106). Fails with
    /// `InvalidInput` for a time or length beyond what the format holds.
    pub fn write(&mut self, time_ns: u64, bytes: &[u8]) -> io::Result<()> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        let seconds = u32::try_from(time_ns / 1_000_000_000);
        let seconds = seconds.map_err(|_| invalid("a time after 2106"))?;
        let len = u32::try_from(bytes.len())
            .ok()
            .filter(|&len| len <= CAPTURE_MAX);
        let len = len.ok_or_else(|| invalid("a frame longer than 256 KiB"))?;
        for word in [seconds, (time_ns % 1_000_000_000) as u32, len, len] {
            self.output.write_all(&word.to_le_bytes())?;
        }
        self.output.write_all(bytes)
    }

    /// Flushes and gives the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.flush()?;
        Ok(self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(frames: &[(u64, &[u8])]) -> Vec<u8> {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for (time_ns, bytes) in frames {
            writer.write(*time_ns, bytes).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let frames: [(u64, &[u8]); 3] = [
            (0, b"first"),
            (1_700_000_000_123_456_789, &[7; 1514]),
            (5, b""),
        ];
        let file = written(&frames);
        let read: Vec<Record> = PcapReader::new(&file[..])
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let expected = frames.map(|(time_ns, bytes)| Record {
            time_ns,
            wire_len: bytes.len() as u32,
            bytes: bytes.to_vec(),
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn another_implementation_reads_what_is_written() {
        let file = written(&[(1_700_000_000_123_456_789, b"some bytes"), (9, b"more")]);
        let mut reader = pcap_file::pcap::PcapReader::new(&file[..]).unwrap();
        let first = reader.next_packet().unwrap().unwrap();
        assert_eq!(first.timestamp.as_nanos(), 1_700_000_000_123_456_789);
        assert_eq!((&first.data[..], first.orig_len), (&b"some bytes"[..], 10));
        assert_eq!(&reader.next_packet().unwrap().unwrap().data[..], b"more");
        assert!(reader.next_packet().is_none());
    }

    #[test]
    fn either_byte_order_and_fraction_is_read() {
        for big in [false, true] {
            for (magic, time_ns) in [(MAGIC_MICROS, 2_000_003_000), (MAGIC_NANOS, 2_000_000_003)] {
                let words = [magic, 0x0002_0004, 0, 0, 65_535, 1, 2, 3, 4, 60];
                let mut file: Vec<u8> = words
                    .iter()
                    .flat_map(|word: &u32| {
                        if big {
                            word.to_be_bytes()
                        } else {
                            word.to_le_bytes()
                        }
                    })
                    .collect();
                file.extend_from_slice(b"abcd");
                let record = PcapReader::new(&file[..]).unwrap().next().unwrap().unwrap();
                assert_eq!(
                    record,
                    Record {
                        time_ns,
                        wire_len: 60,
                        bytes: b"abcd".to_vec()
                    }
                );
            }
        }
    }

    #[test]
    fn broken_files_are_errors() {
        let file = written(&[(0, b"first"), (0, b"second")]);
        assert!(matches!(
            PcapReader::new(&b"no capture at all......."[..]),
            Err(PcapError::Magic(_))
        ));
        assert!(matches!(
            PcapReader::new(&file[..23]),
            Err(PcapError::Io { record: 0, .. })
        ));
        let mut other_link = file.clone();
        other_link[20] = 101;
        assert!(matches!(
            PcapReader::new(&other_link[..]),
            Err(PcapError::LinkType(101))
        ));
        for cut in [24 + 21 + 3, 24 + 21 + 16, file.len() - 1] {
            let mut reader = PcapReader::new(&file[..cut]).unwrap();
            assert!(reader.next().unwrap().is_ok());
            assert!(
                matches!(reader.next(), Some(Err(PcapError::Io { record: 1, .. }))),
                "{cut}"
            );
            assert!(reader.next().is_none());
        }
        let mut long = file;
        long[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        let first = PcapReader::new(&long[..]).unwrap().next();
        assert!(matches!(
            first,
            Some(Err(PcapError::TooLong { record: 0, .. }))
        ));
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        assert!(writer.write(u64::MAX, b"").is_err());
        assert!(
            writer
                .write(0, &vec![0; (CAPTURE_MAX + 1) as usize])
                .is_err()
        );
    }
}
