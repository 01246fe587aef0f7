//! Memory that is no longer needed.
//!
//! In: nothing. Out: the kernel has it back. Must not know: what it was needed for.

/// Gives free memory back to the kernel. After a list of everything and a sync of everything there are tens of
/// megabytes of it between what is still in use, and the allocator would keep them for good.
#[allow(unsafe_code)]
pub fn release() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim(3) may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has all threads share one heap: they hand each other what they allocate, and hardly ever allocate at the same time.
/// To be called before there are threads.
#[allow(unsafe_code)]
pub fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt(3) only stores the number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
