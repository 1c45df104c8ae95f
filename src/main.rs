//! The command `attn`.
fn main() {}
