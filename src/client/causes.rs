//! Errors of libraries as one line with all causes.

use std::error::Error;

/// The error and its causes, each once: many errors repeat their cause, others hide it.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in error_chain(error) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The error and its causes, the outermost first.
pub fn error_chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    fn layers(text: &[&'static str]) -> Option<Box<Layer>> {
        let (text, rest) = text.split_first()?;
        Some(Box::new(Layer { text, source: layers(rest) }))
    }

    #[test]
    fn every_cause_is_printed_once() {
        let hidden = layers(&["cannot list: client error", "client error", "tcp connect error", "refused (111)"]);
        let line = causes(&*hidden.expect("layers"));
        assert_eq!(line, "cannot list: client error: tcp connect error: refused (111)");
    }
}
