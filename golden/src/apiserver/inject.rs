//! Sends the faulty answer of an injected fault.

use std::io;

use super::delivery::{Cut, Encode};
use super::encoding::Encoding;
use super::exchange::{Exchange, refuse_with};
use super::fault::Fault;
use super::http::{Connection, Then};
use super::status::Status;
use super::watch::{WatchFaults, send_error};

const HTML: &str = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1>\
                    </center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n";

const PLAIN: &str = "text/plain; charset=utf-8";

const TIMED_OUT: &[u8] = br#"{"metadata":{},"status":"Failure","message":"Timeout: request did not complete within the allotted timeout","reason":"Timeout","details":{},"code":504}"#;

/// Neither JSON nor protobuf: a wrong magic and a wrong wire type.
const GARBAGE: &[u8] = b"\x00\xff\xfe\x07\x80garbage\x1b{[\"\xc3\x28";

/// Sends a fault in place of an answer.
///
/// Returns `None` if the fault only changes how the right answer is delivered, which is stored in the connection's
/// delivery and in `watch_faults`.
pub(super) async fn inject(
    connection: &mut Connection,
    fault: &Fault,
    answer: &Exchange<'_>,
    watch_faults: &mut WatchFaults,
) -> Option<io::Result<Then>> {
    let watch = answer.request.is_watch();
    match fault {
        Fault::Refuse(code) => Some(refuse_with(connection, &answer.status(*code), answer.encoding).await),
        Fault::RefuseFor { code, retry_after } => {
            let status = answer.status(*code).retry_after(*retry_after);
            Some(refuse_with(connection, &status, answer.encoding).await)
        }
        Fault::TooManyRequests { retry_after } => {
            let header = format!("Retry-After: {retry_after}\r\n");
            respond(connection, 429, PLAIN, &header, b"Too many requests, please try again later.\n").await
        }
        Fault::TimedOut => respond(connection, 504, PLAIN, "", TIMED_OUT).await,
        Fault::Html(code) => respond(connection, *code, "text/html", "Server: nginx\r\n", HTML.as_bytes()).await,
        Fault::RefuseInOk(code) => {
            let body = answer.status(*code).body(answer.encoding);
            respond(connection, 200, answer.encoding.media_type(), "", &body).await
        }
        Fault::ErrorEvent(code) => Some(event(connection, answer, &answer.status(*code)).await),
        Fault::WatchProgressDisabled => Some(event(connection, answer, &Status::watch_progress_disabled()).await),
        Fault::EndAtOnce => Some(stream(connection, answer.encoding, b"").await),
        Fault::Garbage if watch => Some(stream(connection, answer.encoding, GARBAGE).await),
        Fault::Garbage => respond(connection, 200, answer.encoding.media_type(), "", GARBAGE).await,
        Fault::NoAnswer => {
            connection.gone().await;
            Some(Ok(Then::Close))
        }
        Fault::HangUp => Some(Ok(Then::Close)),
        Fault::ContinueExpired => {
            let token = answer.request.param("continue").unwrap_or_default();
            let status = Status::continue_expired(&token);
            Some(refuse_with(connection, &status, answer.encoding).await)
        }
        Fault::NoBookmark { end } => {
            watch_faults.no_bookmark = true;
            watch_faults.end = end.then_some(None);
            None
        }
        Fault::EndAfterList(code) => {
            watch_faults.end = Some(code.map(|code| answer.status(code)));
            None
        }
        Fault::Paced(pace) => {
            connection.delivery.pace = Some(*pace);
            None
        }
        Fault::Cut { after, announced } => {
            connection.delivery.cut = Some(Cut { left: *after, announced: *announced });
            None
        }
    }
}

/// Sends a whole answer; the connection can be used again.
async fn respond(
    connection: &mut Connection,
    code: u16,
    media_type: &str,
    headers: &str,
    body: &[u8],
) -> Option<io::Result<Then>> {
    Some(connection.respond(code, media_type, headers, body).await.map(|()| Then::Reuse))
}

async fn event(connection: &mut Connection, answer: &Exchange<'_>, status: &Status) -> io::Result<Then> {
    send_error(connection, answer.encoding, status).await.map(|()| Then::Reuse)
}

async fn stream(connection: &mut Connection, encoding: Encoding, bytes: &[u8]) -> io::Result<Then> {
    connection.begin(encoding.stream_media_type(), Encode::Plain).await?;
    connection.body(bytes).await?;
    connection.end().await?;
    Ok(Then::Reuse)
}
