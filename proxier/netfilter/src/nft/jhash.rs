//! The hash of `jhash` expressions, as the kernel computes it.
//!
//! The kernel's `jhash()` is Bob Jenkins' lookup3 with its seed in the initial value. It reads whole blocks of 12 bytes in the CPU's
//! byte order and the last 1 to 12 bytes in little-endian order. So keys of up to 12 bytes (IPv4) have the same hash on
//! every machine; longer ones (IPv6) have the same hash on x86-64 and aarch64, which are little-endian under Linux, and another one on
//! big-endian machines (s390x).

/// The golden value that the kernel starts with (`JHASH_INITVAL`).
const INITIAL: u32 = 0xdead_beef;
const BLOCK: usize = 12;

/// Hashes `key` with a seed, as this machine's kernel does.
#[must_use]
pub fn jhash(key: &[u8], seed: u32) -> u32 {
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let mut state = [INITIAL.wrapping_add(length).wrapping_add(seed); 3];
    let mut rest = key;
    while rest.len() > BLOCK {
        let (block, more) = rest.split_at(BLOCK);
        add(&mut state, block, u32::from_ne_bytes);
        mix(&mut state);
        rest = more;
    }
    if !rest.is_empty() {
        let mut last = [0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        add(&mut state, &last, u32::from_le_bytes);
        finish(&mut state);
    }
    state[2]
}

/// The result of a `jhash` expression: the hash scaled to a number below `modulus`, plus `offset`.
///
/// The kernel multiplies instead of dividing (`reciprocal_scale()`).
#[must_use]
pub fn scaled(hash: u32, modulus: u32, offset: u32) -> u32 {
    let number = (u64::from(hash) * u64::from(modulus)) >> 32;
    u32::try_from(number).unwrap_or(u32::MAX).wrapping_add(offset)
}

fn add(state: &mut [u32; 3], block: &[u8], number: fn([u8; 4]) -> u32) {
    for (word, bytes) in state.iter_mut().zip(block.chunks_exact(4)) {
        *word = word.wrapping_add(bytes.try_into().map_or(0, number));
    }
}

/// `__jhash_mix()`: each step subtracts one word from another, xors it rotated, and adds the third to it.
fn mix(words: &mut [u32; 3]) {
    const STEPS: [(usize, usize, usize, u32); 6] =
        [(0, 2, 1, 4), (1, 0, 2, 6), (2, 1, 0, 8), (0, 2, 1, 16), (1, 0, 2, 19), (2, 1, 0, 4)];
    for (to, from, other, bits) in STEPS {
        words[to] = words[to].wrapping_sub(words[from]) ^ words[from].rotate_left(bits);
        words[from] = words[from].wrapping_add(words[other]);
    }
}

/// `__jhash_final()`
fn finish(words: &mut [u32; 3]) {
    const STEPS: [(usize, usize, u32); 7] =
        [(2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24)];
    for (to, from, bits) in STEPS {
        words[to] = (words[to] ^ words[from]).wrapping_sub(words[from].rotate_left(bits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_when_scaled_is_below_the_modulus() {
        assert_eq!(scaled(0, 16381, 0), 0);
        assert_eq!(scaled(u32::MAX, 16381, 0), 16380);
        assert_eq!(scaled(1 << 31, 1000, 7), 507);
        assert_eq!(scaled(12345, 1, 3), 3);
    }

    #[test]
    fn hash_depends_on_every_byte_and_on_the_seed() {
        let key: Vec<u8> = (1..=20).collect();
        let hash = jhash(&key, 1);
        assert_ne!(hash, jhash(&key, 2));
        for at in 0..key.len() {
            let mut other = key.clone();
            other[at] ^= 0x80;
            assert_ne!(hash, jhash(&other, 1), "byte {at}");
        }
        // An empty key leaves the initial value.
        assert_eq!(jhash(&[], 5), INITIAL + 5);
    }
}
