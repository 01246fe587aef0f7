//! Repeating what may have failed for a moment only.

use std::thread::sleep;
use std::time::Duration;

const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(300);

/// Tries up to three times, 0.3 s apart, as long as `may_pass` says of an error that it may not last.
///
/// For what is read once and kept for long: one failed system call must not decide it.
///
/// # Errors
/// That of the last attempt.
pub fn retry<T, E>(mut attempt: impl FnMut() -> Result<T, E>, may_pass: impl Fn(&E) -> bool) -> Result<T, E> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match attempt() {
            Err(error) if left > 0 && may_pass(&error) => sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_may_pass_are_retried_and_others_are_not() {
        let mut attempts = 0;
        let mut failing = |until: u32| {
            attempts += 1;
            if attempts < until { Err(attempts) } else { Ok(attempts) }
        };
        assert_eq!(retry(|| failing(2), |_| true), Ok(2));
        assert_eq!(retry(|| failing(9), |_| false), Err(3));
        assert_eq!(retry(|| failing(9), |_| true), Err(6));
    }
}
