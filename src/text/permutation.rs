//! A random order of numbers of which each is known without the others.
//!
//! ```text
//! (left, right) -> (right, left xor hash(right xor key))         once for each key
//! ```
//!
//! A Feistel network (Luby and Rackoff 1988, SIAM J. Comput. 17): a bijection of the pairs whatever `hash` is. Pairs of
//! `b` bits each are the numbers below `2^(2b)`; from one that is not below `count` it goes on, so that the numbers below
//! `count` are permuted among themselves (Black and Rogaway 2002, "cycle walking").

/// Keys of this many rounds.
pub(super) type Keys = [u64; 4];

/// The number at place `index` of the numbers below `count`, in the order that `keys` give: fewer than five rounds through
/// the network on average.
pub(super) fn permuted(index: u64, count: u64, keys: &Keys) -> u64 {
    debug_assert!(index < count);
    let bits = (u64::BITS - (count - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1 << bits) - 1;
    let mut number = index;
    loop {
        let halves = (number >> bits, number & mask);
        let (left, right) = keys.iter().fold(halves, |(left, right), key| (right, left ^ (hash(right ^ key) & mask)));
        number = left << bits | right;
        if number < count {
            return number;
        }
    }
}

/// The finaliser of SplitMix64 (Steele et al. 2014, OOPSLA).
fn hash(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = [3, 5, 7, 11];

    #[test]
    fn each_number_has_one_place() {
        for count in (1..70).chain([255, 256, 257, 1009, 4097]) {
            let mut numbers: Vec<u64> = (0..count).map(|index| permuted(index, count, &KEYS)).collect();
            numbers.sort_unstable();
            assert!(numbers.into_iter().eq(0..count), "{count}");
        }
        let far = 1 << 60;
        assert!((0..1000).map(|index| permuted(index, far, &KEYS)).all(|number| number < far));
    }

    /// Under 1,000 keys each of 13 numbers is about as often at each place, and after each other.
    #[test]
    fn every_order_is_as_likely() {
        const COUNT: u64 = 13;
        let (mut at, mut after) = ([[0; COUNT as usize]; COUNT as usize], [[0; COUNT as usize]; COUNT as usize]);
        for key in 0..1000 {
            let keys = [1, 2, 3, 4].map(|round| hash(4 * key + round));
            let numbers: Vec<usize> = (0..COUNT).map(|index| permuted(index, COUNT, &keys) as usize).collect();
            numbers.iter().enumerate().for_each(|(place, &number)| at[place][number] += 1);
            numbers.windows(2).for_each(|pair| after[pair[0]][pair[1]] += 1);
        }
        // Expected are 1,000 / 13 = 77, with a standard deviation of 8.4; five of these are allowed either way.
        let is_fair = |count: &i32| (35..=119).contains(count);
        assert!(at.iter().flatten().all(is_fair), "{at:?}");
        let others = |row: usize| after[row].iter().enumerate().filter(move |(column, _)| *column != row);
        assert!((0..COUNT as usize).flat_map(others).all(|(_, count)| is_fair(count)), "{after:?}");
    }
}
