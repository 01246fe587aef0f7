//! A line's words.
//!
//! In: a line, or one word of it. Out: the words, and the values they spell. Must not know: which options there are.

use std::borrow::Cow;
use std::str::FromStr;

/// Splits a line as iptables-restore does: at spaces, except inside double quotes, where a backslash takes the next
/// character as it is.
pub(super) fn words(line: &str) -> Result<Vec<Cow<'_, str>>, String> {
    let mut words = Vec::with_capacity(16);
    let mut rest = line.trim();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
        if rest[end..].starts_with('"') {
            let (word, used) = quoted(rest)?;
            words.push(Cow::Owned(word));
            rest = rest[used..].trim_start();
        } else {
            words.push(Cow::Borrowed(&rest[..end]));
            rest = rest[end..].trim_start();
        }
    }
    Ok(words)
}

/// A word with quotes in it, and how long it is as written.
fn quoted(text: &str) -> Result<(String, usize), String> {
    let (mut word, mut quoted) = (String::new(), false);
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => word.extend(characters.next().map(|(_, c)| c)),
            c if c.is_whitespace() && !quoted => return Ok((word, at)),
            c => word.push(c),
        }
    }
    if quoted { Err("a quote is not closed".to_owned()) } else { Ok((word, text.len())) }
}

/// Reads an option's value.
pub(super) fn number<T: FromStr>(option: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{option} does not take {value}"))
}

/// `value[/mask]`, hexadecimal with 0x.
pub(super) fn mark(text: &str) -> Result<(u32, u32), String> {
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let one = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let bad = |_| format!("{text} is no mark");
    Ok((one(value).map_err(bad)?, mask.map_or(Ok(u32::MAX), one).map_err(bad)?))
}

/// `N`, `FROM:TO`, `:TO` or `FROM:`.
pub(super) fn ports(option: &str, text: &str) -> Result<(u16, u16), String> {
    let Some((from, to)) = text.split_once(':') else {
        return number(option, text).map(|port| (port, port));
    };
    let end = |text: &str, open| if text.is_empty() { Ok(open) } else { number(option, text) };
    Ok((end(from, 0)?, end(to, u16::MAX)?))
}
