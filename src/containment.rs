//! Decides which panics abort the process and which only fail the request that caused them.
//!
//! A panic in the proxy's own work aborts: the kubelet restarts it, rules stay in place, and half-updated state is
//! worse
//! than a restart. Reading rules for `/debug/rules` changes nothing, so a panic there becomes a response of 500.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tracing::error;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Makes every panic outside of [`contain`] abort the process after its message is printed.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if CONTAINED.get() {
            error!("{panic}");
            return;
        }
        print(panic);
        std::process::abort();
    }));
}

/// Runs read-only `work`; returns `None` if it panics.
pub fn contain<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contained_panic_is_no_result_and_the_thread_goes_on() {
        assert_eq!(contain(|| 7), Some(7));
        assert_eq!(contain(|| -> u32 { panic!("inspection met something new") }), None);
        assert!(!CONTAINED.get());
        // A nested call leaves the outer one contained.
        assert_eq!(contain(|| (contain(|| -> u32 { panic!("inner") }), CONTAINED.get())), Some((None, true)));
    }
}
