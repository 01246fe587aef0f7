//! `/debug/rules`: the report of `kube-proxy dump` over HTTP, as text or JSON.
//!
//! The report takes seconds. While a sync runs, or within the interval after a request, the page refuses instead.

use std::fmt;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::{ACCEPT, RETRY_AFTER};

use super::{JSON, PLAIN, PageRequest, PageResponse, ResponseBuilder, error, query};

/// The path of the page.
pub const PATH: &str = "/debug/rules";
/// The shortest time between two reports.
const INTERVAL: Duration = Duration::from_secs(5);

/// Renders the report of one Service or of all, as JSON or as text.
pub type RenderReport = Box<dyn Fn(Option<&str>, bool) -> Result<String, ReportError> + Send + Sync>;

/// Why there is no report.
#[derive(Debug)]
pub enum ReportError {
    /// Not at the moment; the request may be repeated.
    Unavailable(String),
    /// The request is invalid.
    BadRequest(String),
}

/// The page.
#[derive(Clone)]
pub struct RulesPage {
    report: Arc<RenderReport>,
    busy: Arc<dyn Fn() -> bool + Send + Sync>,
    last: Arc<Mutex<Option<Instant>>>,
}

impl fmt::Debug for RulesPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RulesPage")
    }
}

impl RulesPage {
    /// Creates the page. `busy`: whether a sync is running.
    pub fn new(report: RenderReport, busy: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { report: Arc::new(report), busy: Arc::new(busy), last: Arc::default() }
    }

    /// Renders the page. Takes seconds.
    pub fn answer(&self, request: &PageRequest) -> PageResponse {
        if (self.busy)() {
            return later(StatusCode::SERVICE_UNAVAILABLE, "a sync is running", 1);
        }
        // Held until the report is rendered: two at a time would take twice the memory.
        let mut last = match self.last.try_lock() {
            Ok(last) => last,
            Err(TryLockError::Poisoned(last)) => last.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return later(StatusCode::TOO_MANY_REQUESTS, "another report is being rendered", INTERVAL.as_secs());
            }
        };
        if last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return later(StatusCode::TOO_MANY_REQUESTS, "too many requests", INTERVAL.as_secs());
        }
        *last = Some(Instant::now());
        let accepts = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let json = accepts.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with(JSON));
        match (self.report)(query(request, "service").next(), json) {
            Ok(text) => ResponseBuilder::new(if json { JSON } else { PLAIN }, text).nosniff().build(),
            Err(ReportError::Unavailable(why)) => later(StatusCode::SERVICE_UNAVAILABLE, &why, INTERVAL.as_secs()),
            Err(ReportError::BadRequest(problem)) => error(StatusCode::BAD_REQUEST, &problem),
        }
    }
}

fn later(status: StatusCode, why: &str, seconds: u64) -> PageResponse {
    let mut answer = error(status, &format!("{why}; try again in {seconds} s"));
    answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn request(accept: &str) -> PageRequest {
        hyper::Request::builder()
            .uri("/debug/rules?service=a/b")
            .header(ACCEPT, accept)
            .body(Default::default())
            .expect("a request")
    }

    #[test]
    fn rules_page_waits_for_syncs_and_is_rate_limited() {
        let busy = Arc::new(AtomicBool::new(true));
        let syncing = busy.clone();
        let report: RenderReport = Box::new(|service, json| Ok(format!("{service:?} {json}")));
        let page = RulesPage::new(report, move || syncing.load(Ordering::Relaxed));
        assert_eq!(page.answer(&request("*/*")).status(), StatusCode::SERVICE_UNAVAILABLE);
        busy.store(false, Ordering::Relaxed);
        let answer = page.answer(&request("text/html, application/json;q=0.9"));
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::OK, &JSON.parse().expect("a value"))
        );
        let again = page.answer(&request("*/*"));
        assert_eq!((again.status(), &again.headers()["retry-after"]), (StatusCode::TOO_MANY_REQUESTS, &5.into()));
    }
}
