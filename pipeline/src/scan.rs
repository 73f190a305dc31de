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

/// Every x86-64 has the instructions of SSE2: no detection is needed.
#[cfg(target_arch = "x86_64")]
fn marked(block: &[u8; 64]) -> u64 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8,
    };
    let half = |half: &[u8; 8]| i64::from_le_bytes(*half);
    let mut marks = 0;
    for (index, sixteen) in block.as_chunks::<16>().0.iter().enumerate() {
        let ([low, high], _) = sixteen.as_chunks::<8>() else { continue };
        let bytes = _mm_set_epi64x(half(high), half(low));
        let quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"'.cast_signed()));
        let backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\'.cast_signed()));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
        let found = _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, backslash), control));
        marks |= u64::from(found as u16) << (16 * index);
    }
    marks
}

#[cfg(not(target_arch = "x86_64"))]
fn marked(block: &[u8; 64]) -> u64 {
    portable(block)
}

/// The same on any machine.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn portable(block: &[u8; 64]) -> u64 {
    let mut marks = 0;
    for (index, eight) in block.as_chunks::<8>().0.iter().enumerate() {
        // The multiplication gathers the lowest bits of eight bytes in the highest byte.
        let found = (marked_8(eight) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        marks |= found << (8 * index);
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
                for block in bytes.as_chunks::<64>().0 {
                    prop_assert_eq!(marked(block), portable(block));
                }
            }
        }
    }
}
