//! The sizes of models that are chosen from, by `attn train` and by the bench `search`.

/// Channels of a head.
pub const HEAD_DIM: i64 = 32;

/// Channels and layers, from small to large.
pub const SIZES: [[i64; 2]; 11] =
    [[32, 2], [64, 2], [64, 3], [96, 3], [128, 4], [192, 4], [192, 6], [256, 6], [320, 8], [384, 8], [512, 8]];
