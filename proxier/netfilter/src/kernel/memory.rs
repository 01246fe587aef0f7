//! Returns free heap memory to the kernel.

/// Returns free heap memory to the kernel (malloc_trim(3)).
///
/// After a full list and a full sync, tens of megabytes lie between blocks in use, and the allocator would keep them.
#[allow(unsafe_code)]
pub fn release() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim(3) may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes all threads share one heap. Call it before starting threads.
///
/// Threads that pass allocations to each other and rarely allocate at the same time gain nothing from separate heaps.
#[allow(unsafe_code)]
pub fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt(3) only stores the number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
