//! Faults of an API server, each as a real server, or what stands before one, shows it.

use super::delivery::Pace;
use super::request::Request;

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error `Status` in the encoding that was asked for, without `Retry-After`.
    ///
    /// A real one answers 403 to all for its first second, until its roles are there (recorded).
    ///
    /// For streamed lists: 400 (openyurt#2745), 403 (RBAC that grants `list` without `watch`), 404 and 501 (aggregated
    /// servers and proxies without watches), 405 (k8s.io/apiserver's `handleWatch` for a storage without `Watch`,
    /// openshift-apiserver#617), 422 (a server without the feature gate WatchList), 500 and 503 (kubernetes#139766).
    /// For watches: 410 (k8s.io/apiserver until 1.17; later ones send [`Fault::ErrorEvent`]).
    Refuse(u16),
    /// An error `Status` with `details.retryAfterSeconds` and the header `Retry-After`, as k8s.io/apiserver's
    /// `ErrorNegotiated` sends both: 429 while a watch cache initialises (`storage is (re)initializing`), 500 from etcd,
    /// 503 and 504. client-go repeats such a request itself, up to ten times, before its reflector sees the error
    /// (rest/with_retry.go).
    RefuseFor {
        /// The HTTP status.
        code: u16,
        /// Seconds to wait.
        retry_after: u32,
    },
    /// 429 in plain text with `Retry-After`, which is how API priority and fairness rejects (recorded; k8s.io/apiserver's
    /// server/filters/priority-and-fairness.go, `tooManyRequests`): no `Status` whatever was asked for.
    TooManyRequests {
        /// Seconds to wait; a real one says more the longer it is overloaded.
        retry_after: u32,
    },
    /// 504 after a minute, as a real one answers a list whose etcd is gone (recorded; server/filters/timeout.go): in plain
    /// text whatever was asked for, of JSON without `kind` and `apiVersion`. The minute is left out here. Its streamed
    /// lists are then [`Fault::Paced`] with [`Pace::Silent`]: 200, not one event, and the end at `timeoutSeconds`. Its
    /// lists with `resourceVersion=0` and its watches go on.
    TimedOut,
    /// A page of HTML: 502 or 504 of an ingress, 200 of a captive portal or a login page.
    Html(u16),
    /// A `Status` of a failure with HTTP status 200. client-go takes it for an error (rest/request.go,
    /// `transformResponse`).
    RefuseInOk(u16),
    /// A stream of one ERROR event, and its end. 410 is how k8s.io/apiserver tells that a version is too old, in the
    /// middle of a watch or at its beginning (storage/cacher, `newErrWatcher`).
    ErrorEvent(u16),
    /// [`Fault::ErrorEvent`] of a kube-apiserver 1.31 or later on etcd before 3.4.25, or 3.5.0 to 3.5.7, for streamed
    /// lists: `RequestWatchProgress is disabled` (storage/cacher/cacher.go). Recorded with etcd 3.4.23.
    WatchProgressDisabled,
    /// A stream without events that ends at once: a load balancer without patience, a server that shuts down.
    EndAtOnce,
    /// A stream with all initial events and without their bookmark. Servers before 1.27 ignore `sendInitialEvents`; what
    /// goes on and what ends depends on the proxy between.
    NoBookmark {
        /// Whether the stream ends then, or stays open.
        end: bool,
    },
    /// A streamed list that is whole, bookmark included, and then ends: with an ERROR event of this code, or without.
    /// 410 after each list is what a server with a tiny watch cache does under load.
    EndAfterList(Option<u16>),
    /// The request is read, and nothing follows, not even a status line.
    NoAnswer,
    /// The connection is closed without an answer, as by a server that is being killed.
    HangUp,
    /// The answer flows at its own pace: [`Pace::Slow`] for a slow link, [`Pace::HalfBody`] and [`Pace::Silent`] for a
    /// connection that died in silence in the middle of the body, or before it.
    Paced(Pace),
    /// The body breaks off after so many bytes, and the connection is closed: in a chunked body, or one whose
    /// `Content-Length` (`announced`) promised more.
    Cut {
        /// How many bytes come.
        after: usize,
        /// Whether there is a `Content-Length`.
        announced: bool,
    },
    /// 200, the right `Content-Type`, and bytes that are nothing: a broken cache or a proxy with a wrong key.
    Garbage,
    /// 410 for a page, with a token to go on inconsistently: etcd was compacted since the first page
    /// (storage/etcd3/errors.go, `handleCompactedErrorForPaging`).
    ContinueExpired,
}

/// Which requests a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// All.
    All,
    /// Plain lists, each page of them.
    Lists,
    /// Pages after the first one.
    LaterPages,
    /// Streamed lists.
    StreamedLists,
    /// Watches that begin at a version.
    Watches,
}

impl Requests {
    /// Whether a request is one of them; `collection`: it asks for no single object.
    fn include(self, request: &Request, collection: bool) -> bool {
        let get = request.method == "GET" && collection;
        match self {
            Self::All => true,
            Self::Lists => get && !request.is_watch(),
            Self::LaterPages => get && !request.is_watch() && request.param("continue").is_some(),
            Self::StreamedLists => get && request.is_streaming_list(),
            Self::Watches => get && request.is_watch() && !request.is_streaming_list(),
        }
    }
}

/// A fault, the requests it is for, and how often it happens: for good, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    pub(super) fault: Fault,
    requests: Requests,
    kind: Option<String>,
    pub(super) left: usize,
}

impl Fault {
    /// Lets it happen to these requests.
    #[must_use]
    pub fn on(self, requests: Requests) -> Injection {
        Injection { fault: self, requests, kind: None, left: usize::MAX }
    }
}

impl Injection {
    /// Restricts it to one kind.
    #[must_use]
    pub fn of(mut self, kind: &str) -> Self {
        self.kind = Some(kind.to_owned());
        self
    }

    /// Restricts it to the next `count` such requests.
    #[must_use]
    pub fn times(mut self, count: usize) -> Self {
        self.left = count;
        self
    }

    pub(super) fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    pub(super) fn applies(&self, request: &Request, kind: Option<&str>, collection: bool) -> bool {
        (self.kind.is_none() || self.kind.as_deref() == kind) && self.requests.include(request, collection)
    }
}
