//! How much memory there is, asked before much of it is taken: where it is missing, an allocation ends the process.

use std::fs;

use candle_core::{Result, bail};

/// Where the system does not say what it has: more than any machine that this is for.
const CEILING: usize = 1 << 40;

/// What is given without a question.
const LITTLE: usize = 1 << 26;

/// Bytes that can be had now. Linux says so, for the machine and for the group of processes that this one belongs to;
/// elsewhere it is a terabyte, whatever there is.
pub fn available() -> usize {
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|bytes| bytes.trim().parse().ok());
    let machine = status_bytes("/proc/meminfo", "MemAvailable:");
    [group, machine].into_iter().flatten().min().unwrap_or(CEILING)
}

/// A field of one of Linux's status files, given there in kB; `None` elsewhere.
pub fn status_bytes(path: &str, field: &str) -> Option<usize> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
}

/// Refuses what needs more bytes than there are; `None` is a number of bytes that has no name.
///
/// # Errors
/// With both figures.
pub fn check(what: &str, bytes: Option<usize>) -> Result<()> {
    let megabytes = |bytes: usize| bytes.div_ceil(1_000_000);
    match bytes {
        Some(bytes) if bytes <= LITTLE => Ok(()),
        // The system's own word goes first where it has one; where not, it may still refuse so much at once.
        Some(bytes) if bytes <= available() && Vec::<u8>::new().try_reserve_exact(bytes).is_ok() => Ok(()),
        Some(bytes) => {
            bail!("{what}: expected at most {} MB of memory, got {} MB", megabytes(available()), megabytes(bytes))
        }
        None => bail!("{what}: expected at most {} MB of memory, got more than 64 bits count", megabytes(available())),
    }
}

/// Bytes of a tensor, unless there are more than a number holds.
pub fn tensor_bytes(shape: &[usize], bytes_each: usize) -> Option<usize> {
    shape.iter().try_fold(bytes_each, |bytes, size| bytes.checked_mul(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_memory_holds_is_refused_with_the_figure() {
        assert!(check("a", Some(1000)).is_ok());
        assert!(check("a", Some(LITTLE + 1)).is_ok());
        let error = check("a", Some(1 << 52)).unwrap_err().to_string();
        assert!(error.starts_with("a: expected at most") && error.contains("got 4503599628 MB"), "{error}");
        assert_eq!(tensor_bytes(&[1 << 40, 1 << 40], 4), None);
        assert!(check("a", tensor_bytes(&[1 << 40, 1 << 40], 4)).is_err());
    }
}
