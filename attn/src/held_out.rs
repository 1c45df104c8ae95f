//! How much of a text is held out from training.

/// The fraction of a text of so many bytes that is held out: a tenth, but no more than 256 KiB, enough to compare losses, and
/// nothing of a text so short that the loss on a tenth says nothing.
pub fn held_out_fraction(bytes: u64) -> f64 {
    const MIN_BYTES: u64 = 200;
    const MAX_BYTES: f64 = 262_144.0;
    if bytes < MIN_BYTES { 0.0 } else { (MAX_BYTES / bytes as f64).min(0.1) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_tenth_of_a_text_is_held_out_and_no_more_than_a_quarter_of_a_megabyte() {
        let held_out = |bytes: u64| super::held_out_fraction(bytes) * bytes as f64;
        assert_eq!((held_out(1_000), held_out(2_000_000)), (100.0, 200_000.0));
        assert_eq!((held_out(199), held_out(200)), (0.0, 20.0));
        for bytes in [2_621_440, 10_000_000, 1 << 40] {
            assert!((held_out(bytes) - 262_144.0).abs() < 1e-3, "{bytes}");
        }
    }
}
