//! `/debug/`, with `enableProfiling`: the log level, and the names of Go's profiles, which do not exist here.

use hyper::{Method, StatusCode};

use super::{HTML, PLAIN, PageRequest, PageResponse, ResponseBuilder, error, redirect};

/// The profiles of Go's profiler.
const PROFILES: [&str; 9] =
    ["allocs", "block", "goroutine", "heap", "mutex", "profile", "symbol", "threadcreate", "trace"];
const NO_PROFILES: &str = "this kube-proxy is written in Rust and has no profiler of its own; \
                           `perf record -g -p PID` on the node sees into it";

/// The page below `/debug/`; `None` if there is none.
pub fn page(request: &PageRequest, set_verbosity: fn(u32)) -> Option<PageResponse> {
    let path = request.uri().path();
    if path == "/debug/pprof" {
        return Some(redirect(request, StatusCode::FOUND, "/debug/pprof/"));
    }
    if let Some(name) = path.strip_prefix("/debug/pprof/") {
        return Some(profile(name));
    }
    match path {
        "/debug/flags/v" => Some(verbosity(request, set_verbosity)),
        "/debug/flags" => Some(flags()),
        path if path.starts_with("/debug/flags/") => Some(flags()),
        _ => None,
    }
}

fn profile(name: &str) -> PageResponse {
    match name {
        "" => {
            let names: String = PROFILES.map(|name| format!("<li>{name}</li>\n")).concat();
            let page = "<html>\n<head>\n<title>/debug/pprof/</title>\n</head>\n<body>\n";
            ResponseBuilder::new(
                HTML,
                format!("{page}<p>{NO_PROFILES}</p>\nNot here:\n<ul>\n{names}</ul>\n</body>\n</html>\n"),
            )
            .nosniff()
            .build()
        }
        name if PROFILES.contains(&name) => error(StatusCode::NOT_IMPLEMENTED, NO_PROFILES),
        _ => error(StatusCode::NOT_FOUND, "Unknown profile"),
    }
}

fn flags() -> PageResponse {
    let page = "<html>\n<head>\n<title>/debug/flags/</title>\n</head>\n<body>\n/debug/flags/<br>\n<br>\nflags:<br>\n";
    ResponseBuilder::new(HTML, format!("{page}<ul>\n<li>v (PUT a number to change it)</li>\n</ul>\n</body>\n</html>\n"))
        .nosniff()
        .build()
}

fn verbosity(request: &PageRequest, set: fn(u32)) -> PageResponse {
    if request.method() != Method::PUT {
        return error(StatusCode::NOT_ACCEPTABLE, "unsupported http method");
    }
    let text = String::from_utf8_lossy(request.body());
    match parse(&text) {
        Ok(level) => {
            set(level);
            let done = format!("successfully set klog.logging.verbosity to {level}\n");
            ResponseBuilder::new(PLAIN, done).nosniff().build()
        }
        Err(problem) => error(StatusCode::BAD_REQUEST, &format!("strconv.ParseUint: parsing {text:?}: {problem}")),
    }
}

/// Parses digits only, as Go does.
fn parse(text: &str) -> Result<u32, &'static str> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err("invalid syntax");
    }
    text.parse().ok().filter(|level| i32::try_from(*level).is_ok()).ok_or("value out of range")
}
