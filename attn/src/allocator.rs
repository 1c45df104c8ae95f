//! The allocator of the program and of the benches.
//!
//! Training allocates a tensor for every operation. The system's allocator returns large blocks to the kernel, which
//! zeroes them when they are allocated again: a third of the time. mimalloc keeps them, but by default gives back what
//! has been free for a second, which costs a tenth of the time of a larger model.

use libmimalloc_sys::{mi_option_get, mi_option_set};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps freed memory until the process ends, unless `MIMALLOC_PURGE_DELAY` is set.
pub(crate) fn keep_freed_memory() {
    /// `mi_option_purge_delay` in mimalloc.h, in milliseconds; the crate has no constant for it.
    const PURGE_DELAY: i32 = 15;
    let is_set = std::env::var_os("MIMALLOC_PURGE_DELAY").is_some();
    // SAFETY: both functions may be called at any time and ignore numbers that are not options. If a later version
    // reused this number for another option, its default would hardly be 1000 as well.
    unsafe {
        if !is_set && mi_option_get(PURGE_DELAY) == 1000 {
            mi_option_set(PURGE_DELAY, -1);
        }
    }
}
