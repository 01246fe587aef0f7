//! How far a long read is, for a program that shows it.

use std::sync::OnceLock;

/// Counts one step of a read each time that it is called; dropped at the end of the read.
pub type Step = Box<dyn FnMut()>;

static START: OnceLock<fn(&str) -> Step> = OnceLock::new();

/// Sets the function that is called at the start of each long read, with words for it; its result is called at each step. Only
/// the first call counts.
pub fn show_progress(start: fn(&str) -> Step) {
    let _ = START.set(start);
}

/// Starts a read.
pub(super) fn start(what: &str) -> Step {
    START.get().map_or_else(|| Box::new(|| ()) as Step, |start| start(what))
}
