//! Parses and validates the options of lists and watches as kube-apiserver does.
//!
//! See k8s.io/apimachinery's internalversion/validation and k8s.io/apiserver's storage/cacher/delegator.

use std::time::Duration;

use super::event::Key;
use super::request::Request;
use super::status::Status;
use super::store::WatchStart;
use super::token::Continuation;

/// The parsed options of a GET of a collection.
#[derive(Debug)]
pub(super) enum CollectionQuery {
    List(ListOptions),
    Watch(WatchOptions),
}

/// Optional features of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerFeatures {
    /// The feature gate WatchList.
    pub(super) streamed_lists: bool,
    /// kube-apiserver's default, disabled by `--watch-cache=false` and in some aggregated servers.
    pub(super) watch_cache: bool,
}

#[derive(Debug)]
pub(super) struct ListOptions {
    /// `None`: the current version.
    pub(super) version: Option<u64>,
    /// The version that the server must have reached.
    pub(super) not_older: u64,
    pub(super) limit: usize,
    pub(super) continued: Option<Key>,
}

#[derive(Debug)]
pub(super) struct WatchOptions {
    /// `None`: from the current version on.
    pub(super) start: Option<WatchStart>,
    pub(super) not_older: u64,
    /// Whether a bookmark ends the initial events.
    pub(super) streaming_list: bool,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
}

impl CollectionQuery {
    pub(super) fn parse(request: &Request, features: ServerFeatures) -> Result<Self, Status> {
        let version = match request.param("resourceVersion").as_deref() {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| invalid_version(text, request.is_watch()))?),
        };
        let matching = request.param("resourceVersionMatch").unwrap_or_default();
        if !matches!(matching.as_str(), "" | "Exact" | "NotOlderThan") {
            return Err(Status::unsupported_match(&matching, &["Exact", "NotOlderThan", ""]));
        }
        let initial = request.param("sendInitialEvents").is_some().then(|| request.flag("sendInitialEvents"));
        if request.is_watch() {
            Ok(Self::Watch(WatchOptions::of(request, version, &matching, initial, features)?))
        } else if initial.is_some() {
            Err(Status::forbidden_option("sendInitialEvents", "sendInitialEvents is forbidden for list"))
        } else {
            Ok(Self::List(ListOptions::of(request, version, &matching, features)?))
        }
    }
}

impl ListOptions {
    fn of(request: &Request, version: Option<u64>, matching: &str, features: ServerFeatures) -> Result<Self, Status> {
        number(request, "timeoutSeconds")?;
        let limit = number(request, "limit")?.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let continued = request.param("continue").filter(|token| !token.is_empty());
        if !matching.is_empty() && version.is_none() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(Status::forbidden_option("resourceVersionMatch", why));
        }
        if let Some(token) = continued {
            if !matching.is_empty() {
                let why = "resourceVersionMatch is forbidden when continue is provided";
                return Err(Status::forbidden_option("resourceVersionMatch", why));
            }
            if version.is_some_and(|version| version > 0) {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let place = Continuation::read(&token)
                .ok_or_else(|| Status::bad_request("invalid continue token: continue key is not valid"))?;
            let not_older = place.version.unwrap_or(0);
            return Ok(Self { version: place.version, not_older, limit, continued: Some(place.after) });
        }
        if (matching, version) == ("Exact", Some(0)) {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            return Err(Status::forbidden_option("resourceVersionMatch", why));
        }
        let not_older = version.unwrap_or(0);
        // With a limit and without a match, the version is exact, for compatibility with old clients.
        if matching == "Exact" || (matching.is_empty() && not_older > 0 && limit < usize::MAX) {
            return Ok(Self { version, not_older, limit, continued: None });
        }
        // The watch cache does not page.
        let limit = if version == Some(0) && features.watch_cache { usize::MAX } else { limit };
        Ok(Self { version: None, not_older, limit, continued: None })
    }
}

impl WatchOptions {
    fn of(
        request: &Request,
        version: Option<u64>,
        matching: &str,
        initial: Option<bool>,
        features: ServerFeatures,
    ) -> Result<Self, Status> {
        if initial.is_some() && matching != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(Status::forbidden_option("resourceVersionMatch", why));
        }
        if initial.is_some() && !features.streamed_lists {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Status::forbidden_option("sendInitialEvents", why));
        }
        if initial.is_none() && !matching.is_empty() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(Status::forbidden_option("resourceVersionMatch", why));
        }
        let version = version.filter(|version| *version > 0);
        let (start, not_older) = match (initial, version) {
            (Some(true), _) | (None, None) => (Some(WatchStart::Everything), version.unwrap_or(0)),
            (Some(false), None) => (None, 0),
            (Some(false) | None, Some(version)) => (Some(WatchStart::After(version)), 0),
        };
        let bookmarks = request.flag("allowWatchBookmarks");
        let timeout = number(request, "timeoutSeconds")?.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        // A watch without a version is a streamed list if the server supports them (internalversion/defaults.go).
        let streamed = initial.unwrap_or(start == Some(WatchStart::Everything) && features.streamed_lists);
        Ok(Self { start, not_older, streaming_list: streamed && bookmarks, bookmarks, timeout })
    }
}

fn invalid_version(text: &str, watch: bool) -> Status {
    let what = format!("Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax");
    if watch {
        return Status::new(500, "", format!("resourceVersion: {what}"));
    }
    Status::bad_request(format!("invalid resource version: resourceVersion: {what}"))
}

fn number(request: &Request, name: &str) -> Result<Option<u64>, Status> {
    let Some(text) = request.param(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax")))
}
