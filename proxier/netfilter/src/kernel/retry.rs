//! Retries operations that may fail temporarily.

use std::thread::sleep;
use std::time::Duration;

const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(300);

/// Tries up to three times, 0.3 s apart, while `may_pass` returns true for the error.
///
/// Intended for values that are read once and used for long, so that one failed system call does not decide them.
///
/// # Errors
/// The error of the last attempt.
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
    fn temporary_errors_are_retried_and_others_are_not() {
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
