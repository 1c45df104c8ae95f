//! The allocator of the program and of the benches.
//!
//! Training allocates a tensor for every step of the computation. With the system's allocator each large one is fresh
//! memory that the kernel zeroes first, which costs a third of the time. mimalloc keeps memory, but once a second it gives
//! back what is free, to fetch it again in the next step: a tenth of the time of a larger model.

use libmimalloc_sys::{mi_option_get, mi_option_set};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps freed memory to the end instead of a second, unless `MIMALLOC_PURGE_DELAY` says otherwise.
pub(crate) fn keep_freed_memory() {
    /// `mi_option_purge_delay` of mimalloc.h, in milliseconds; the crate has no name for it.
    const PURGE_DELAY: i32 = 15;
    let is_chosen = std::env::var_os("MIMALLOC_PURGE_DELAY").is_some();
    // SAFETY: both functions may be called at any time with the number of any option, and refuse others. Should a later
    // version give the number to another option, it would hardly have the same default.
    unsafe {
        if !is_chosen && mi_option_get(PURGE_DELAY) == 1000 {
            mi_option_set(PURGE_DELAY, -1);
        }
    }
}
