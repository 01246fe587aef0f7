//! How the body of an answer is delivered: pace, truncation, compression.

use std::time::Duration;

use flate2::write::GzEncoder;

/// How answers flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the client reads.
    #[default]
    Normal,
    /// Requests are read and not answered; open watches fall silent. What was held back follows at the next pace.
    Silent,
    /// About half of every answer, or of the next line of a watch, then nothing.
    HalfBody,
    /// Bodies come in pieces of `bytes`, `delay` apart.
    Slow {
        /// Size of a piece.
        bytes: usize,
        /// Pause after each piece.
        delay: Duration,
    },
}

/// How the body of one answer is delivered.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// The pace of this answer; by default that of the server.
    pub(super) pace: Option<Pace>,
    pub(super) cut: Option<Cut>,
    pub(super) gzip: Gzip,
}

/// Where a body breaks off, and with it the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Bytes that are still sent.
    pub(super) left: usize,
    /// Whether a `Content-Length` promises more; otherwise the body is chunked and lacks its last chunk.
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

/// What compresses a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encode {
    Plain,
    /// As lists are: one stream.
    Gzip,
    /// As streamed lists are from 1.37 on: a gzip member for each flush.
    GzipMembers,
}
