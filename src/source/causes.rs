//! Errors of libraries in one line, with all that lies beneath.
//!
//! In: an error. Out: what it says, what caused it, down to the kernel's words. Must not know: what was tried.

use std::error::Error;
use std::io::ErrorKind;

/// The error and its causes, each once: many errors repeat what caused them, others hide it.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in beneath(error) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether it comes down to waiting in vain.
pub fn timed_out(error: &(dyn Error + 'static)) -> bool {
    beneath(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|io| io.kind() == ErrorKind::TimedOut)
}

fn beneath<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{said}")]
    struct Layer {
        said: &'static str,
        source: Option<Box<Self>>,
    }

    fn layers(said: &[&'static str]) -> Option<Box<Layer>> {
        let (said, rest) = said.split_first()?;
        Some(Box::new(Layer { said, source: layers(rest) }))
    }

    #[test]
    fn every_cause_is_told_once() {
        let hidden = layers(&["cannot list: client error", "client error", "tcp connect error", "refused (111)"]);
        let text = causes(&*hidden.expect("layers"));
        assert_eq!(text, "cannot list: client error: tcp connect error: refused (111)");
    }

    #[test]
    fn waiting_in_vain_is_told_from_other_troubles() {
        let late = std::io::Error::new(ErrorKind::TimedOut, "late");
        assert!(timed_out(&kube::Error::ReadEvents(late)));
        assert!(!timed_out(&kube::Error::ReadEvents(ErrorKind::ConnectionReset.into())));
    }
}
