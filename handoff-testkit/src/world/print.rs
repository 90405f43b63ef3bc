//! One number for a state, in which texts do not count: nobody decides by a text, and every abort has one of its own.

use std::hash::{Hash, Hasher};

/// The number. Two states that behave alike and differ in texts have the same.
pub(super) fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = WithoutTexts { state: SEED, announced: None };
    value.hash(&mut hasher);
    hasher.finish()
}

const SEED: u64 = 0x243f_6a88_85a3_08d3;
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A list of bytes is announced by its length, a text is not (`impl Hash for str`): that tells them apart.
struct WithoutTexts {
    state: u64,
    announced: Option<usize>,
}

impl WithoutTexts {
    /// Both halves of the product: each bit of the number reaches all of the state.
    fn mix(&mut self, number: u64) {
        let product = u128::from(self.state ^ number).wrapping_mul(u128::from(FACTOR));
        self.state = (product as u64) ^ ((product >> 64) as u64).rotate_left(23) ^ self.state.rotate_left(29);
    }
}

impl Hasher for WithoutTexts {
    fn finish(&self) -> u64 {
        let mut last = Self { ..*self };
        last.mix(SEED);
        last.mix(FACTOR);
        last.state
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.announced.take() == Some(bytes.len()) {
            bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
        }
    }

    fn write_usize(&mut self, number: usize) {
        self.announced = Some(number);
        self.mix(number as u64);
    }

    fn write_u8(&mut self, number: u8) {
        self.mix(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.mix(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }

    fn write_isize(&mut self, number: isize) {
        self.mix(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_do_not_count_and_all_else_does() {
        let print = |text: &str, bytes: [u8; 2], number: u64| fingerprint(&(text.to_owned(), bytes, number));
        assert_eq!(print("a", [1, 2], 3), print("bc", [1, 2], 3));
        assert_ne!(print("a", [1, 2], 3), print("a", [1, 1], 3));
        assert_ne!(print("a", [1, 2], 3), print("a", [1, 2], 4));
        assert_ne!(fingerprint(&Some(1_u8)), fingerprint(&None::<u8>));
        assert_ne!(fingerprint(&vec![vec![1_u64], vec![]]), fingerprint(&vec![vec![], vec![1_u64]]));
    }
}
