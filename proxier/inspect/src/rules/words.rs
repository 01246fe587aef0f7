//! Splits a line into words, and parses the values that they spell.

use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr;

/// A word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    pub(super) text: Cow<'a, str>,
    /// Whether it was quoted, so that it is not an option.
    pub(super) quoted: bool,
}

impl Word<'_> {
    /// Whether it can begin an option.
    pub(super) fn is_option(&self) -> bool {
        !self.quoted && self.text.starts_with('-')
    }

    /// Whether it negates.
    pub(super) fn is_not(&self) -> bool {
        !self.quoted && self.text == "!"
    }
}

/// Splits a line as iptables-restore does: at spaces, except inside double quotes, where a backslash takes the next
/// character as it is.
pub(super) fn words(line: &str) -> Result<Vec<Word<'_>>, String> {
    let mut words = Vec::with_capacity(16);
    let mut rest = line.trim();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
        if rest[end..].starts_with('"') {
            let (word, used) = quoted(rest)?;
            words.push(Word { text: Cow::Owned(word), quoted: true });
            rest = rest[used..].trim_start();
        } else {
            words.push(Word { text: Cow::Borrowed(&rest[..end]), quoted: false });
            rest = rest[end..].trim_start();
        }
    }
    Ok(words)
}

/// A word with quotes in it, and its length as written.
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

/// Parses an option's value.
pub(super) fn number<T: FromStr>(option: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{option} does not take {value}"))
}

/// Parses a decimal, hexadecimal (`0x`) or octal (`0`) number.
pub(super) fn any_number(text: &str) -> Result<u32, String> {
    let parsed = match (text.strip_prefix("0x").or(text.strip_prefix("0X")), text.strip_prefix('0')) {
        (Some(hex), _) => u32::from_str_radix(hex, 16),
        (None, Some(octal)) if !octal.is_empty() => u32::from_str_radix(octal, 8),
        _ => text.parse(),
    };
    parsed.map_err(|_| format!("{text} is no number"))
}

/// `value[/mask]`, hexadecimal with 0x.
pub(super) fn mark(text: &str) -> Result<(u32, u32), String> {
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let bad = |_| format!("{text} is no mark");
    Ok((any_number(value).map_err(bad)?, mask.map_or(Ok(u32::MAX), any_number).map_err(bad)?))
}

/// `N`, `FROM:TO`, `:TO` or `FROM:`.
pub(super) fn range<T>(option: &str, text: &str, (least, most): (T, T)) -> Result<(T, T), String>
where
    T: FromStr + Clone,
{
    let Some((from, to)) = text.split_once(':') else {
        return number::<T>(option, text).map(|number| (number.clone(), number));
    };
    let end = |text: &str, open: T| if text.is_empty() { Ok(open) } else { number(option, text) };
    Ok((end(from, least)?, end(to, most)?))
}

/// A port or a range of ports.
pub(super) fn ports(option: &str, text: &str) -> Result<(u16, u16), String> {
    range(option, text, (0, u16::MAX))
}

/// An address as a number, to compare bit by bit.
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}
