//! The options of a list or a watch, checked against each other as the API server does.
//!
//! In: a request. Out: what is to be listed or watched, or a refusal.
//! Must not know: the store, connections.

use std::time::Duration;

use super::request::Request;
use super::status::Status;
use super::store::{Key, Start};

/// What a GET of a collection asks for.
#[derive(Debug)]
pub(super) enum Ask {
    List(List),
    Watch(Watch),
}

#[derive(Debug)]
pub(super) struct List {
    /// `None`: as of now.
    pub(super) version: Option<u64>,
    /// The server must have reached this version.
    pub(super) not_older: u64,
    pub(super) limit: usize,
    pub(super) continued: Option<Key>,
}

#[derive(Debug)]
pub(super) struct Watch {
    /// `None`: with what happens from now on.
    pub(super) start: Option<Start>,
    pub(super) not_older: u64,
    /// The end of the initial events is to be marked.
    pub(super) streaming_list: bool,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
}

impl Ask {
    pub(super) fn of(request: &Request, streaming_allowed: bool) -> Result<Self, Status> {
        let version = match request.param("resourceVersion").as_deref() {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| Status::bad_request(format!("Invalid value: \"{text}\"")))?),
        };
        let matching = request.param("resourceVersionMatch").unwrap_or_default();
        if !matches!(matching.as_str(), "" | "Exact" | "NotOlderThan") {
            return Err(Status::forbidden_option("resourceVersionMatch", "only Exact and NotOlderThan are supported"));
        }
        let initial = request.param("sendInitialEvents").is_some().then(|| request.flag("sendInitialEvents"));
        if request.is_watch() {
            Ok(Self::Watch(Watch::of(request, version, &matching, initial, streaming_allowed)?))
        } else if initial.is_some() {
            Err(Status::forbidden_option("sendInitialEvents", "sendInitialEvents is forbidden for list"))
        } else {
            Ok(Self::List(List::of(request, version, &matching)?))
        }
    }
}

impl List {
    fn of(request: &Request, version: Option<u64>, matching: &str) -> Result<Self, Status> {
        let limit = number(request, "limit")?.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let continued = request.param("continue").filter(|token| !token.is_empty());
        if !matching.is_empty() && (version.is_none() || continued.is_some()) {
            let why = "resourceVersionMatch is forbidden without resourceVersion, and with continue";
            return Err(Status::forbidden_option("resourceVersionMatch", why));
        }
        if let Some(token) = continued {
            if version.is_some_and(|version| version > 0) {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let (version, key) = read_token(&token).ok_or_else(|| Status::bad_request("continue key is not valid"))?;
            return Ok(Self { version: Some(version), not_older: version, limit, continued: Some(key) });
        }
        match (matching, version) {
            ("Exact", Some(0)) => {
                let why = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
                Err(Status::forbidden_option("resourceVersionMatch", why))
            }
            ("Exact", version) => Ok(Self { version, not_older: version.unwrap_or(0), limit, continued: None }),
            // Served from the watch cache, which does not page.
            (_, Some(0)) => Ok(Self { version: None, not_older: 0, limit: usize::MAX, continued: None }),
            _ => Ok(Self { version: None, not_older: version.unwrap_or(0), limit, continued: None }),
        }
    }
}

impl Watch {
    fn of(
        request: &Request,
        version: Option<u64>,
        matching: &str,
        initial: Option<bool>,
        streaming_allowed: bool,
    ) -> Result<Self, Status> {
        if initial.is_some() && !streaming_allowed {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Status::forbidden_option("sendInitialEvents", why));
        }
        if initial.is_some() && matching != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(Status::forbidden_option("resourceVersionMatch", why));
        }
        if initial.is_none() && !matching.is_empty() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(Status::forbidden_option("resourceVersionMatch", why));
        }
        let version = version.filter(|version| *version > 0);
        let (start, not_older) = match (initial, version) {
            (Some(true), _) | (None, None) => (Some(Start::Everything), version.unwrap_or(0)),
            (Some(false), None) => (None, 0),
            (Some(false) | None, Some(version)) => (Some(Start::After(version)), 0),
        };
        let bookmarks = request.flag("allowWatchBookmarks");
        let timeout = number(request, "timeoutSeconds")?.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        Ok(Self { start, not_older, streaming_list: initial == Some(true) && bookmarks, bookmarks, timeout })
    }
}

fn number(request: &Request, name: &str) -> Result<Option<u64>, Status> {
    let Some(text) = request.param(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Status::bad_request(format!("Invalid value: \"{text}\": {name}")))
}

/// A continue token: where the page ended, and of which version it is.
pub(super) fn write_token(version: u64, (namespace, name): &Key) -> String {
    let hex: String = format!("{namespace}/{name}").bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("v{version}.{hex}")
}

fn read_token(token: &str) -> Option<(u64, Key)> {
    let (version, hex) = token.strip_prefix('v')?.split_once('.')?;
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok());
    let text = String::from_utf8(bytes.collect::<Option<_>>()?).ok()?;
    let (namespace, name) = text.split_once('/')?;
    Some((version.parse().ok()?, (namespace.to_owned(), name.to_owned())))
}
