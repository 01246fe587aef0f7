//! Writes bodies of unknown length: chunked, optionally compressed, paced and truncated.

use std::io::{self, Write as _};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::AsyncWriteExt;

use super::delivery::{Cut, Encode, Gzip, Pace};
use super::http::Connection;

/// The compression level of kube-apiserver (`defaultGzipContentEncodingLevel`).
const LEVEL: u32 = 1;

impl Connection {
    /// Begins a response of unknown length.
    pub(super) async fn begin(&mut self, media_type: &str, encode: Encode) -> io::Result<()> {
        self.delivery.gzip = match encode {
            Encode::Plain => Gzip::Off,
            Encode::Gzip => Gzip::Whole(Box::new(GzEncoder::new(Vec::new(), Compression::new(LEVEL)))),
            Encode::GzipMembers => Gzip::EachPiece,
        };
        let mut headers = String::new();
        if encode != Encode::Plain {
            headers += "Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n";
        }
        match self.delivery.cut {
            Some(Cut { left, announced: true }) => headers += &format!("Content-Length: {}\r\n", left + 1024),
            _ => headers += "Transfer-Encoding: chunked\r\n",
        }
        self.head(200, media_type, &headers).await
    }

    /// Sends part of the body at the current pace.
    pub(super) async fn body(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.delivery.gzip {
            Gzip::Off => self.send(data).await,
            Gzip::Whole(encoder) => {
                encoder.write_all(data)?;
                let compressed = std::mem::take(encoder.get_mut());
                self.send(&compressed).await
            }
            Gzip::EachPiece if data.is_empty() => Ok(()),
            Gzip::EachPiece => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
                encoder.write_all(data)?;
                // Without the flush, Go's reader holds the data back until the next member begins. kube-apiserver
                // flushes too.
                encoder.flush()?;
                let member = encoder.finish()?;
                self.send(&member).await
            }
        }
    }

    /// Ends the body properly.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        if let Gzip::Whole(encoder) = std::mem::take(&mut self.delivery.gzip) {
            let rest = encoder.finish()?;
            self.send(&rest).await?;
        }
        if self.delivery.cut.is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.stream.write_all(b"0\r\n\r\n").await
    }

    /// Sends the first half of a chunk, for a connection that is about to break.
    pub(super) async fn torn(&mut self, data: &[u8]) -> io::Result<()> {
        self.stream.write_all(format!("{:x}\r\n", data.len()).as_bytes()).await?;
        self.stream.write_all(&data[..data.len() / 2]).await
    }

    async fn send(&mut self, data: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        while sent < data.len() {
            let own = self.delivery.pace;
            let pace = own.unwrap_or_else(|| *self.pace.borrow_and_update());
            let (until, pause) = match pace {
                Pace::Normal => (data.len(), Duration::ZERO),
                Pace::Silent => (sent, Duration::ZERO),
                Pace::HalfBody => (sent.max(data.len() / 2), Duration::ZERO),
                Pace::Slow { bytes, delay } => (data.len().min(sent + bytes.max(1)), delay),
            };
            if until > sent {
                self.piece(&data[sent..until]).await?;
                sent = until;
            }
            if matches!(pace, Pace::Silent | Pace::HalfBody) {
                if own.is_some() {
                    self.gone().await;
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                self.pace_changed().await?;
            } else if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    async fn piece(&mut self, data: &[u8]) -> io::Result<()> {
        let Some(cut) = &mut self.delivery.cut else { return self.chunk(data).await };
        let data = &data[..data.len().min(cut.left)];
        cut.left -= data.len();
        let (announced, over) = (cut.announced, cut.left == 0);
        if announced {
            self.stream.write_all(data).await?;
        } else if !data.is_empty() {
            self.chunk(data).await?;
        }
        if over { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    async fn chunk(&mut self, data: &[u8]) -> io::Result<()> {
        let mut framed = format!("{:x}\r\n", data.len()).into_bytes();
        framed.extend_from_slice(data);
        framed.extend_from_slice(b"\r\n");
        self.stream.write_all(&framed).await
    }
}
