//! nf_tables registers, which pass values between a rule's expressions.
//!
//! Loading a register that no expression has written yields nothing.

use netfilter::nft::Register;

/// The size in bytes: the kernel has 20 words of 4 bytes.
const SIZE: usize = 80;

#[derive(Clone, Debug)]
pub(super) struct Registers {
    bytes: [u8; SIZE],
    filled: [bool; SIZE],
}

impl Registers {
    pub(super) fn new() -> Self {
        Self { bytes: [0; SIZE], filled: [false; SIZE] }
    }

    /// Stores a value, padded with zeros to the next word.
    pub(super) fn store(&mut self, at: Register, value: &[u8]) {
        let start = usize::from(at.0) * 4;
        let end = (start + value.len().next_multiple_of(4)).min(SIZE);
        let Some(context) = self.bytes.get_mut(start..end) else { return };
        context.fill(0);
        context.iter_mut().zip(value).for_each(|(context, byte)| *context = *byte);
        self.filled[start..end].fill(true);
    }

    /// The stored bytes; `None` if not all were stored.
    pub(super) fn load(&self, at: Register, length: usize) -> Option<&[u8]> {
        let start = usize::from(at.0) * 4;
        let range = start..start.checked_add(length)?;
        self.filled.get(range.clone())?.iter().all(|filled| *filled).then(|| &self.bytes[range])
    }

    /// Replaces the value by `(value & mask) ^ xor`; `None` without a value.
    pub(super) fn mask(&mut self, at: Register, mask: &[u8], xor: &[u8]) -> Option<()> {
        let value = self.load(at, mask.len())?;
        let zeros = std::iter::repeat(&0);
        let new: Vec<u8> = value.iter().zip(mask).zip(xor.iter().chain(zeros)).map(|((v, m), x)| v & m ^ x).collect();
        self.store(at, &new);
        Some(())
    }

    /// Shifts the words as one number, the last word being the least significant.
    pub(super) fn shift(&mut self, at: Register, length: usize, right: bool, bits: u32) -> Option<()> {
        let value = self.load(at, length.next_multiple_of(4))?;
        let mut words: Vec<u32> =
            value.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_ne_bytes)).collect();
        let bits = bits.min(31);
        let mut carry = 0;
        let mut turn = |word: &mut u32| {
            let old = u64::from(*word);
            let shifted = if right { old << 32 >> bits } else { old << bits };
            let [kept, next] =
                if right { [shifted >> 32, shifted & 0xffff_ffff] } else { [shifted & 0xffff_ffff, shifted >> 32] };
            *word = u32::try_from(kept).unwrap_or(0) | carry;
            carry = u32::try_from(next).unwrap_or(0);
        };
        if right {
            words.iter_mut().for_each(&mut turn)
        } else {
            words.iter_mut().rev().for_each(&mut turn)
        }
        let new: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.store(at, &new);
        Some(())
    }

    /// Converts each number of `size` bytes between host and network byte order.
    pub(super) fn turn(&mut self, at: Register, length: usize, size: usize) -> Option<()> {
        let mut value = self.load(at, length)?.to_vec();
        if cfg!(target_endian = "little") && size > 0 {
            value.chunks_mut(size).for_each(<[u8]>::reverse);
        }
        self.store(at, &value);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Register = Register(4);

    fn with(value: &[u8]) -> Registers {
        let mut registers = Registers::new();
        registers.store(AT, value);
        registers
    }

    #[test]
    fn unwritten_register_is_unknown() {
        let registers = with(&[1, 2]);
        assert_eq!(registers.load(AT, 4), Some(&[1, 2, 0, 0][..]));
        assert_eq!(
            (registers.load(AT, 5), registers.load(Register(3), 1), registers.load(Register(255), 1)),
            (None, None, None)
        );
        let mut last = Registers::new();
        last.store(Register(19), &[7; 16]);
        last.store(Register(200), &[7; 4]);
        assert_eq!((last.load(Register(19), 4), last.load(Register(19), 5)), (Some(&[7; 4][..]), None));
    }

    #[test]
    fn numbers_are_masked_shifted_and_turned() {
        let mut registers = with(&0x1234_u32.to_ne_bytes());
        assert!(registers.mask(AT, &0xff00_u32.to_ne_bytes(), &1_u32.to_ne_bytes()).is_some());
        assert_eq!(registers.load(AT, 4), Some(&0x1201_u32.to_ne_bytes()[..]));
        assert!(registers.shift(AT, 4, true, 8).is_some());
        assert_eq!(registers.load(AT, 4), Some(&0x12_u32.to_ne_bytes()[..]));
        let mut two = with(&[1_u32.to_ne_bytes(), 0x8000_0000_u32.to_ne_bytes()].concat());
        assert!(two.shift(AT, 8, false, 1).is_some());
        assert_eq!(two.load(AT, 8), Some(&[3_u32.to_ne_bytes(), [0; 4]].concat()[..]));
        assert!(two.shift(AT, 8, true, 1).is_some());
        assert_eq!(two.load(AT, 8), Some(&[1_u32.to_ne_bytes(), 0x8000_0000_u32.to_ne_bytes()].concat()[..]));
        let mut port = with(&80_u16.to_be_bytes());
        assert!(port.turn(AT, 2, 2).is_some());
        assert_eq!(port.load(AT, 2), Some(&80_u16.to_ne_bytes()[..]));
        assert!(Registers::new().turn(AT, 2, 2).is_none());
    }
}
