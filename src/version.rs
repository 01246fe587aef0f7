//! `--version`: the release that this program claims to be.

/// The Kubernetes release whose behaviour this program has.
pub const KUBERNETES: &str = "v1.37.0";
/// Its minor release.
pub const MINOR_RELEASE: &str = "1.37";
/// The first minor release (1.x) whose configurations are accepted.
pub const FIRST_MINOR: u8 = 31;
/// The last minor release (1.x) whose configurations are accepted.
pub const LAST_MINOR: u8 = 38;

/// What the value of `--version` asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum VersionAction {
    /// Run the command.
    Run,
    /// Print this text and exit.
    Print(String),
}

/// Parses the value of `--version`.
///
/// # Errors
/// A release that this program cannot claim to be.
pub fn parse_flag(value: &str) -> Result<VersionAction, String> {
    match value {
        "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(VersionAction::Run),
        "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok(VersionAction::Print(format!("Kubernetes {KUBERNETES}"))),
        "raw" => Ok(VersionAction::Print(raw())),
        // kube-proxy lets a distribution append its own suffix.
        claimed
            if claimed.strip_prefix(KUBERNETES).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '+'])) =>
        {
            Ok(VersionAction::Run)
        }
        other => Err(format!(
            "invalid argument {other:?} for \"--version\" flag: must be true, false, raw, or {KUBERNETES} with a suffix \
             such as {KUBERNETES}-mine"
        )),
    }
}

/// The version in the form that Go prints for `version.Info`.
fn raw() -> String {
    let (major, minor) = major_minor();
    let rust = concat!("kube-proxy in Rust ", env!("CARGO_PKG_VERSION"));
    let platform = platform();
    format!(
        "version.Info{{Major:{major:?}, Minor:{minor:?}, EmulationMajor:\"\", EmulationMinor:\"\", \
         MinCompatibilityMajor:\"\", MinCompatibilityMinor:\"\", GitVersion:{KUBERNETES:?}, GitCommit:\"\", \
         GitTreeState:\"\", BuildDate:\"\", GoVersion:\"\", Compiler:{rust:?}, Platform:{platform:?}}}"
    )
}

/// The major and minor number of the Kubernetes release.
#[must_use]
pub fn major_minor() -> (&'static str, &'static str) {
    MINOR_RELEASE.split_once('.').unwrap_or((MINOR_RELEASE, ""))
}

/// The operating system and architecture under Go's names, as `linux/amd64`.
#[must_use]
pub fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{architecture}", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_printed_as_an_official_build_prints_it() {
        assert_eq!(parse_flag("true"), Ok(VersionAction::Print("Kubernetes v1.37.0".to_owned())));
        assert_eq!(parse_flag("false"), Ok(VersionAction::Run));
        let raw = parse_flag("raw").expect("a version");
        let VersionAction::Print(raw) = raw else { panic!("{raw:?}") };
        assert!(raw.starts_with("version.Info{Major:\"1\", Minor:\"37\","), "{raw}");
    }

    #[test]
    fn minor_releases_fit_the_release() {
        assert!(
            KUBERNETES
                .strip_prefix('v')
                .and_then(|rest| rest.strip_prefix(MINOR_RELEASE))
                .is_some_and(|rest| rest.starts_with('.'))
        );
        let minor: u8 = major_minor().1.parse().expect("a number");
        assert!((FIRST_MINOR..=LAST_MINOR).contains(&minor));
    }

    #[test]
    fn only_this_release_may_be_claimed() {
        assert_eq!(parse_flag("v1.37.0-mine.1"), Ok(VersionAction::Run));
        for other in ["v1.37.01", "v1.36.2", "perhaps", ""] {
            assert!(parse_flag(other).is_err(), "{other}");
        }
    }
}
