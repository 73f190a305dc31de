//! Finds the bytes at which a JSON string must look: the quote, the backslash and
//! control characters. It knows nothing else of JSON.

/// Marks those bytes, a bit for each byte, sixty-four in a word. Behind the end
/// all are marked.
pub fn mark(bytes: &[u8], marks: &mut Vec<u64>) {
    marks.clear();
    let (blocks, rest) = bytes.as_chunks::<64>();
    marks.extend(blocks.iter().map(marked));
    let mut last = [0; 64];
    if let Some(place) = last.get_mut(..rest.len()) {
        place.copy_from_slice(rest);
    }
    marks.push(marked(&last));
}

/// The next place at or behind this one that is marked.
#[inline]
#[must_use]
pub fn next(marks: &[u64], at: usize) -> usize {
    let (mut word, mut skip) = (at / 64, at % 64);
    while let Some(bits) = marks.get(word) {
        let bits = bits & (u64::MAX << skip);
        if bits != 0 {
            return word * 64 + bits.trailing_zeros() as usize;
        }
        (word, skip) = (word + 1, 0);
    }
    word * 64
}

/// How many bytes come before the first such one.
#[must_use]
pub fn plain(bytes: &[u8]) -> usize {
    let (blocks, rest) = bytes.as_chunks::<8>();
    for (index, block) in blocks.iter().enumerate() {
        let bits = marked_8(block);
        if bits != 0 {
            return index * 8 + bits.trailing_zeros() as usize / 8;
        }
    }
    let is_plain = |byte: &&u8| **byte >= 0x20 && **byte != b'"' && **byte != b'\\';
    bytes.len() - rest.len() + rest.iter().take_while(is_plain).count()
}

/// Written so that the compiler takes sixteen bytes at a time, or more.
fn marked(block: &[u8; 64]) -> u64 {
    let mut found = [0; 64];
    for (found, &byte) in found.iter_mut().zip(block) {
        *found = u8::from(byte < 0x20) | u8::from(byte == b'"') | u8::from(byte == b'\\');
    }
    let mut marks = 0;
    for (index, eight) in found.as_chunks::<8>().0.iter().enumerate() {
        // The product's highest byte is made of the lowest bits of the eight.
        let bits = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        marks |= bits << (8 * index);
    }
    marks
}

/// The highest bit of each byte that is to be found, and no other bit.
fn marked_8(eight: &[u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const LOW: u64 = ONES * 0x7f;
    let word = u64::from_le_bytes(*eight);
    // Without a carry from byte to byte, so that each bit is exact.
    let zero = |word: u64| !(((word & LOW) + LOW) | word | LOW);
    zero(word ^ (ONES * u64::from(b'"')))
        | zero(word ^ (ONES * u64::from(b'\\')))
        | zero(word & (ONES * 0xe0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_and_only_such_bytes_are_marked(bytes: Vec<u8>, many in proptest::collection::vec(0x18u8..0x60, 0..300)) {
            for bytes in [bytes, many] {
                let mut marks = Vec::new();
                mark(&bytes, &mut marks);
                let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
                for at in 0..=bytes.len() {
                    let rest = bytes.get(at..).unwrap();
                    let found = rest.iter().position(|byte| !is_plain(*byte)).unwrap_or(rest.len());
                    prop_assert_eq!(next(&marks, at), at + found);
                    prop_assert_eq!(plain(rest), found);
                }
            }
        }
    }
}
