//! Flag values, parsed and printed as kube-proxy does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::logging::VmoduleItem;
use crate::config::{DISABLED, net};

/// On or off. A flag of this kind may stand alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Self(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Self(false)),
            _ => Err(format!("{text:?} is neither true nor false")),
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that may be broken, or none at all: Go takes `nan` and `inf`, too, but nothing too big to be held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate(pub f32);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: f32 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
        let digits = text.contains(|c: char| c.is_ascii_digit());
        if number.is_infinite() && digits { Err(format!("{text:?} is too big")) } else { Ok(Self(number)) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_infinite() { write!(f, "{}Inf", if self.0 > 0.0 { '+' } else { '-' }) } else { self.0.fmt(f) }
    }
}

/// `name=true,name=false`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates(pub BTreeMap<String, bool>);

impl FromStr for Gates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut gates = BTreeMap::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, value) = item.split_once('=').ok_or_else(|| format!("missing bool value for {item}"))?;
            let Switch(on) =
                value.trim().parse().map_err(|error| format!("invalid value of {}: {error}", name.trim()))?;
            gates.insert(name.trim().to_owned(), on);
        }
        Ok(Self(gates))
    }
}

impl fmt::Display for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<String> = self.0.iter().map(|(name, on)| format!("{name}={on}")).collect();
        f.write_str(&items.join(","))
    }
}

/// `pattern=level,pattern=level`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmodule(pub Vec<VmoduleItem>);

impl FromStr for Vmodule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let items = text.split(',').filter(|item| !item.is_empty());
        let items = items.map(|item| {
            let wrong = || format!("{item:?} does not have the pattern=N format");
            let (pattern, level) = item.split_once('=').filter(|(pattern, _)| !pattern.is_empty()).ok_or_else(wrong)?;
            let verbosity = level.parse().map_err(|_| wrong())?;
            Ok(VmoduleItem { file_pattern: pattern.to_owned(), verbosity })
        });
        items.collect::<Result<_, String>>().map(Self)
    }
}

impl fmt::Display for Vmodule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<String> =
            self.0.iter().map(|item| format!("{}={}", item.file_pattern, item.verbosity)).collect();
        f.write_str(&items.join(","))
    }
}

/// A path, or nothing.
///
/// # Errors
/// Never: clap requires a `Result`.
pub fn path(text: &str) -> Result<PathBuf, Infallible> {
    Ok(PathBuf::from(text))
}

/// An address, or nothing.
///
/// # Errors
/// Anything else.
pub fn ip(text: &str) -> Result<String, String> {
    if text.is_empty() || net::ip(text).is_some() {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a valid IP address"))
    }
}

/// An address with or without a port, nothing, or the word for nowhere.
///
/// # Errors
/// Anything else.
pub fn ip_port(text: &str) -> Result<String, String> {
    if text.is_empty() || text == DISABLED || net::ip(text).is_some() {
        return Ok(text.to_owned());
    }
    let (host, port) = net::host_port(text)
        .ok_or_else(|| format!("{text:?} is neither an IP address nor of the form IP:port or [IP]:port"))?;
    if net::ip(host).is_none() {
        return Err(format!("{host:?} is not a valid IP address"));
    }
    port.parse::<u16>().map_err(|_| format!("{port:?} is not a valid number of a port, 0 to 65535"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_shown_again() {
        let gates: Gates = " B=false, A=true,".parse().expect("gates");
        assert_eq!(gates.to_string(), "A=true,B=false");
        assert!("A".parse::<Gates>().is_err() && "A=perhaps".parse::<Gates>().is_err());
        let vmodule: Vmodule = "api*=5,run=2".parse().expect("levels");
        assert_eq!(vmodule.to_string(), "api*=5,run=2");
        for wrong in ["api", "=5", "api=x", "api=-1"] {
            assert!(wrong.parse::<Vmodule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_gos_numbers() {
        let shown = |text: &str| text.parse::<Rate>().map(|rate| rate.to_string());
        for (text, go) in
            [("5", "5"), ("2.50", "2.5"), ("-1", "-1"), ("nan", "NaN"), ("Infinity", "+Inf"), ("-inf", "-Inf")]
        {
            assert_eq!(shown(text).as_deref(), Ok(go), "{text}");
        }
        assert_eq!(shown("1e400"), Err("\"1e400\" is too big".to_owned()));
        assert!(shown("").is_err() && shown("5.5.5").is_err());
    }

    #[test]
    fn addresses_are_distinguished_from_invalid_text() {
        for good in ["", "0", "1.2.3.4", "01.2.3.4:80", "[::1]:0", "::1"] {
            assert_eq!(ip_port(good).as_deref(), Ok(good));
        }
        assert_eq!(ip_port("1.2.3.4:x"), Err("\"x\" is not a valid number of a port, 0 to 65535".to_owned()));
        assert_eq!(ip_port("host:80"), Err("\"host\" is not a valid IP address".to_owned()));
        assert!(ip_port("1.2.3.4:70000").is_err() && ip_port("host").is_err());
        assert_eq!(ip("x"), Err("\"x\" is not a valid IP address".to_owned()));
    }
}
