//! In: a line, or one word of it. Out: the words, and the values they spell.
//! Must not know which options there are.

use std::str::FromStr;

/// Splits a line as iptables-restore does: at spaces, except inside double quotes, where a backslash takes the next
/// character as it is.
pub(super) fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(characters.next()),
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
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
