//! How the body of an answer is delivered: pace, truncation, compression.

use std::time::Duration;

use flate2::write::GzEncoder;

/// The pace of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the client reads.
    #[default]
    Normal,
    /// Requests are read and not answered, and open watches stay silent. What was held back follows at the next pace.
    Silent,
    /// About half of every answer, or of the next line of a watch, then nothing.
    HalfBody,
    /// Bodies are sent in pieces of `bytes` with pauses of `delay`.
    Slow {
        /// The size of a piece.
        bytes: usize,
        /// The pause after each piece.
        delay: Duration,
    },
}

/// How the body of one answer is delivered.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// The pace of this answer; `None` for the server's.
    pub(super) pace: Option<Pace>,
    pub(super) cut: Option<Cut>,
    pub(super) gzip: Gzip,
}

/// The point at which a body is truncated and the connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// The bytes still to send.
    pub(super) left: usize,
    /// Whether a `Content-Length` promises more. Otherwise the body is chunked and lacks its last chunk.
    pub(super) announced: bool,
}

/// The compressor of a body.
#[derive(Debug, Default)]
pub(super) enum Gzip {
    #[default]
    Off,
    /// One gzip stream for the whole body.
    Whole(Box<GzEncoder<Vec<u8>>>),
    /// A complete gzip member for each piece.
    EachPiece,
}

/// The compression of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encode {
    Plain,
    /// One stream, as in lists.
    Gzip,
    /// A gzip member for each flush, as in streamed lists from 1.37 on.
    GzipMembers,
}
