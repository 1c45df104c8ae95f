//! The arguments of a bench.

/// Whether it is run by `cargo bench`, which passes `--bench`, and not once as a test; and its own arguments.
pub fn read() -> (bool, Vec<String>) {
    let (flags, args): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|arg| arg == "--bench");
    (!flags.is_empty(), args)
}
