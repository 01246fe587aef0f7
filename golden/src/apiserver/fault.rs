//! Faults of an API server, each as a real server or a proxy in front of it shows it.

use super::delivery::Pace;
use super::request::Request;

/// A fault of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error `Status` in the negotiated encoding, without `Retry-After`.
    ///
    /// kube-apiserver answers 403 to all requests in its first second, until its roles exist (recorded).
    ///
    /// For streamed lists: 400 (openyurt#2745), 403 (RBAC that grants `list` without `watch`), 404 and 501 (aggregated
    /// servers and proxies without watches), 405 (k8s.io/apiserver's `handleWatch` for a storage without `Watch`,
    /// openshift-apiserver#617), 422 (a server without the feature gate WatchList), 500 and 503 (kubernetes#139766).
    /// For watches: 410 (k8s.io/apiserver until 1.17; later ones send [`Fault::ErrorEvent`]).
    Refuse(u16),
    /// An error `Status` with `details.retryAfterSeconds` and the header `Retry-After`.
    ///
    /// k8s.io/apiserver's `ErrorNegotiated` sends both: 429 while a watch cache initialises (`storage is
    /// (re)initializing`), 500 from etcd, 503 and 504. client-go repeats such a request up to ten times before its
    /// reflector sees the error (rest/with_retry.go).
    RefuseFor {
        /// The HTTP status.
        code: u16,
        /// The seconds to wait.
        retry_after: u32,
    },
    /// 429 in plain text with `Retry-After`, as API priority and fairness rejects requests.
    ///
    /// Not a `Status`, whatever the encoding (recorded; server/filters/priority-and-fairness.go, `tooManyRequests`).
    TooManyRequests {
        /// The seconds to wait; kube-apiserver sends more the longer it is overloaded.
        retry_after: u32,
    },
    /// 504, as kube-apiserver answers a list after a minute without etcd.
    ///
    /// The body is plain text with JSON that lacks `kind` and `apiVersion`, whatever the encoding (recorded;
    /// server/filters/timeout.go). The minute is omitted here. Streamed lists of such a server are [`Fault::Paced`]
    /// with [`Pace::Silent`]: 200, no event, and the end at `timeoutSeconds`. Lists with `resourceVersion=0` and
    /// watches continue.
    TimedOut,
    /// An HTML page: 502 or 504 of an ingress, 200 of a captive portal or a login page.
    Html(u16),
    /// A failure `Status` with HTTP status 200, which client-go treats as an error.
    ///
    /// See rest/request.go, `transformResponse`.
    RefuseInOk(u16),
    /// A stream of one ERROR event.
    ///
    /// k8s.io/apiserver reports 410 this way for a version that is too old, at the beginning or in the middle of a
    /// watch (storage/cacher, `newErrWatcher`).
    ErrorEvent(u16),
    /// The ERROR event of kube-apiserver 1.31 or later for streamed lists on an old etcd.
    ///
    /// `RequestWatchProgress is disabled` with etcd before 3.4.25, or 3.5.0 to 3.5.7 (storage/cacher/cacher.go).
    /// Recorded with etcd 3.4.23.
    WatchProgressDisabled,
    /// An empty stream that ends at once: a load balancer with a short timeout, a server that shuts down.
    EndAtOnce,
    /// A stream with all initial events but without their bookmark.
    ///
    /// Servers before 1.27 ignore `sendInitialEvents`; the end of the stream depends on the proxy in between.
    NoBookmark {
        /// Whether the stream ends then, or stays open.
        end: bool,
    },
    /// A complete streamed list that ends after its bookmark, with an ERROR event of this code or without.
    ///
    /// A server with a small watch cache sends 410 after each list under load.
    EndAfterList(Option<u16>),
    /// The request is read and not answered.
    NoAnswer,
    /// The connection is closed without an answer, as by a server that is being killed.
    HangUp,
    /// The answer has its own pace.
    ///
    /// [`Pace::Slow`] is a slow link; [`Pace::HalfBody`] and [`Pace::Silent`] are connections that died in the body,
    /// or before it.
    Paced(Pace),
    /// The body is truncated after so many bytes, and the connection is closed.
    ///
    /// The body is chunked, or a `Content-Length` (`announced`) promised more.
    Cut {
        /// The number of bytes sent.
        after: usize,
        /// Whether there is a `Content-Length`.
        announced: bool,
    },
    /// 200, the right `Content-Type`, and invalid bytes: a broken cache.
    Garbage,
    /// 410 for a page, with a token for an inconsistent continuation: etcd was compacted since the first page.
    ///
    /// See storage/etcd3/errors.go, `handleCompactedErrorForPaging`.
    ContinueExpired,
}

/// The requests that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// All requests.
    All,
    /// Lists that are not streamed, each page.
    Lists,
    /// Pages after the first one.
    LaterPages,
    /// Streamed lists.
    StreamedLists,
    /// Watches from a version.
    Watches,
}

impl Requests {
    /// Whether a request is one of them. `collection`: it requests a collection.
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

/// A fault, the requests that it affects, and the number of times; permanent by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    pub(super) fault: Fault,
    requests: Requests,
    kind: Option<String>,
    pub(super) left: usize,
}

impl Fault {
    /// Applies the fault to these requests.
    #[must_use]
    pub fn on(self, requests: Requests) -> Injection {
        Injection { fault: self, requests, kind: None, left: usize::MAX }
    }
}

impl Injection {
    /// Restricts the injection to one kind.
    #[must_use]
    pub fn of(mut self, kind: &str) -> Self {
        self.kind = Some(kind.to_owned());
        self
    }

    /// Restricts the injection to the next `count` matching requests.
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
