//! Bytes that can be made and checked anywhere in a stream, without keeping it.

/// The content of one direction of a connection: every byte follows from the seed and its place.
#[derive(Clone, Debug)]
pub struct Content {
    seed: u64,
    position: u64,
}

impl Content {
    /// The content of a seed, from its beginning.
    pub fn new(seed: u64) -> Content {
        Content { seed, position: 0 }
    }

    /// Writes the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut written = 0;
        while written < buffer.len() {
            let word = word(self.seed, self.position / 8).to_le_bytes();
            let from = (self.position % 8) as usize;
            let count = (8 - from).min(buffer.len() - written);
            buffer[written..written + count].copy_from_slice(&word[from..from + count]);
            written += count;
            self.position += count as u64;
        }
    }

    /// Checks the next bytes; the place in the stream of the first one that is wrong.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), u64> {
        let mut expected = [0; 4096];
        for chunk in bytes.chunks(expected.len()) {
            let start = self.position;
            let expected = &mut expected[..chunk.len()];
            self.fill(expected);
            if let Some(place) = chunk.iter().zip(expected.iter()).position(|(a, b)| a != b) {
                return Err(start + place as u64);
            }
        }
        Ok(())
    }
}

/// A well-mixed word for every place (Steele, Lea, Flood: SplitMix, 2014).
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_checks_in_any_pieces_and_a_changed_byte_is_found() {
        let mut bytes = vec![0; 10_000];
        Content::new(7).fill(&mut bytes);
        for piece in [1, 3, 8, 4096, 4097] {
            let mut content = Content::new(7);
            assert!(
                bytes
                    .chunks(piece)
                    .all(|chunk| content.check(chunk).is_ok())
            );
        }
        assert!(Content::new(8).check(&bytes).is_err());
        bytes[5001] ^= 1;
        assert_eq!(Content::new(7).check(&bytes), Err(5001));
    }
}
