//! Which panics end the process, and which only the request that caused them.
//!
//! A panic in the proxy's own work ends the process, and the kubelet starts it anew: rules stay, and half-updated state
//! is worse than a restart. Looking at rules for `/debug/rules` changes nothing, so a panic there is an answer of 500.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tracing::error;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Has every panic outside of [`contain`] abort the process, after its message.
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

/// Runs `work`, which only reads, and returns `None` if it panics.
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
        // One inside of another leaves the outer one contained.
        assert_eq!(contain(|| (contain(|| -> u32 { panic!("inner") }), CONTAINED.get())), Some((None, true)));
    }
}
