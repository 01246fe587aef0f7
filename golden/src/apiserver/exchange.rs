//! A request with the parsed parts that answers depend on.

use std::io;

use super::encoding::Encoding;
use super::http::{Connection, Then};
use super::request::Request;
use super::resource::Target;
use super::shared::Shared;
use super::status::Status;

/// A request with its target and negotiated encoding.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    pub(super) shared: &'a Shared,
    pub(super) request: &'a Request,
    pub(super) target: Option<Target<'a>>,
    pub(super) encoding: Encoding,
}

impl Exchange<'_> {
    /// The status of a code for this request.
    pub(super) fn status(&self, code: u16) -> Status {
        Status::of_request(code, self.request, self.target.as_ref())
    }
}

/// Sends a status as the answer.
pub(super) async fn refuse_with(connection: &mut Connection, status: &Status, encoding: Encoding) -> io::Result<Then> {
    connection.respond(status.code, encoding.media_type(), &status.headers(), &status.body(encoding)).await?;
    Ok(Then::Reuse)
}
