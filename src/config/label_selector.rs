//! Label selectors in the text form of Kubernetes, as `kubectl -l` takes them.

use kube::core::{Expression, Selector};

/// Parses a label selector, such as `team=shop,tier in (web,api),!canary`. An empty text selects everything.
///
/// The operators are `=`, `==`, `!=`, `in`, `notin`, existence (`key`) and absence (`!key`). As with kubectl, `!=` and `notin`
/// select objects without the label too.
///
/// # Errors
/// What is wrong with the first invalid requirement.
pub fn parse(text: &str) -> Result<Selector, String> {
    if text.trim().is_empty() {
        return Ok(Selector::default());
    }
    split_outside_parentheses(text).into_iter().map(|requirement| expression(requirement.trim())).collect()
}

/// The parts between commas that are in no parentheses.
fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn expression(text: &str) -> Result<Expression, String> {
    let fault = |expected: &str| format!("{text:?}: {expected}");
    if let Some(name) = text.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(key(name)?));
    }
    // `=` last: the others contain it.
    for (operator, of) in [
        ("!=", Expression::NotEqual as fn(String, String) -> Expression),
        ("==", Expression::Equal),
        ("=", Expression::Equal),
    ] {
        if let Some((name, text)) = text.split_once(operator) {
            return Ok(of(key(name)?, value(text)?));
        }
    }
    let Some((name, rest)) = text.split_once(char::is_whitespace) else { return Ok(Expression::Exists(key(text)?)) };
    let (operator, set) = rest.split_once('(').ok_or_else(|| fault("must have in (values) or notin (values)"))?;
    let set = set.trim_end().strip_suffix(')').ok_or_else(|| fault("must end with a parenthesis"))?;
    let values = set.split(',').map(value).collect::<Result<_, _>>()?;
    match operator.trim() {
        "in" => Ok(Expression::In(key(name)?, values)),
        "notin" => Ok(Expression::NotIn(key(name)?, values)),
        _ => Err(fault("must have in (values) or notin (values)")),
    }
}

/// A label's key: a name, or a DNS subdomain, a slash and a name.
fn key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let is_domain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let has_prefix = prefix.is_none_or(|prefix| (1..=253).contains(&prefix.len()) && prefix.chars().all(is_domain));
    if !name.is_empty() && is_name(name) && has_prefix {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not the key of a label"))
    }
}

/// A label's value; it may be empty.
fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    if is_name(text) { Ok(text.to_owned()) } else { Err(format!("{text:?} is not the value of a label")) }
}

/// Whether a text is empty or a name: at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends.
fn is_name(text: &str) -> bool {
    let has_ends = !text.starts_with(['-', '_', '.']) && !text.ends_with(['-', '_', '.']);
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63 && has_ends && text.chars().all(is_valid)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::core::SelectorExt;

    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: BTreeMap<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}")).matches(&labels)
    }

    #[test]
    fn selectors_select_what_kubectl_selects() {
        let labels = [("team", "shop"), ("example.com/tier", "web"), ("empty", "")];
        for selector in [
            "",
            "team=shop",
            "team == shop",
            " team=shop , example.com/tier in (web,api) ",
            // kubectl needs no space there either.
            "team in(shop)",
            "team notin (a, b)",
            "missing notin (a)",
            "missing!=a",
            "team,!missing",
            "empty=",
            "empty in ()",
        ] {
            assert!(selects(selector, &labels), "{selector}");
        }
        for selector in
            ["team=pay", "team!=shop", "missing", "!team", "team in (a,b)", "team notin (shop)", "team=shop,missing"]
        {
            assert!(!selects(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn invalid_selectors_are_refused_with_the_requirement_that_is_wrong() {
        for (selector, error) in [
            ("team=a b", "\"a b\" is not the value of a label"),
            ("team=shop,", "\"\" is not the key of a label"),
            ("-team", "\"-team\" is not the key of a label"),
            ("Example.com/team", "\"Example.com/team\" is not the key of a label"),
            ("team in shop", "\"team in shop\": must have in (values) or notin (values)"),
            ("team within (shop)", "\"team within (shop)\": must have in (values) or notin (values)"),
            ("team in (shop", "\"team in (shop\": must end with a parenthesis"),
            ("replicas>3", "\"replicas>3\" is not the key of a label"),
        ] {
            assert_eq!(parse(selector).map(|_| ()), Err(error.to_owned()), "{selector}");
        }
    }
}
