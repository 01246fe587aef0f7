//! A minimal HTTP/1.1 client that reads bodies and watches as they are framed.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use golden::apiserver::ApiServer;
use serde_json::Value;

pub(crate) const LONG: Duration = Duration::from_secs(10);
/// The time without data after which nothing more is expected.
pub(crate) const SHORT: Duration = Duration::from_millis(150);

/// A response whose body has not been read to its end.
pub(crate) struct Response {
    pub(crate) code: u16,
    pub(crate) head: String,
    reader: BufReader<TcpStream>,
    /// What is left of a body of known length; `None` when it is chunked.
    left: Option<usize>,
    line: Vec<u8>,
}

pub(crate) fn connect(api: &ApiServer) -> TcpStream {
    let stream = TcpStream::connect(api.address()).expect("the server listens");
    stream.set_read_timeout(Some(LONG)).expect("a timeout can be set");
    stream
}

pub(crate) fn ask(stream: TcpStream, path: &str, headers: &str) -> io::Result<Response> {
    send(stream, &format!("GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n"))
}

pub(crate) fn send(mut stream: TcpStream, request: &str) -> io::Result<Response> {
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    let left = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
    Ok(Response { code, head, reader, left, line: Vec::new() })
}

/// Opens a response on a connection of its own.
pub(crate) fn open(api: &ApiServer, path: &str) -> Response {
    ask(connect(api), path, "").expect("an answer")
}

/// The status and the whole body.
pub(crate) fn get(api: &ApiServer, path: &str) -> (u16, Value) {
    let mut response = open(api, path);
    let body = response.rest().expect("a whole body");
    (response.code, serde_json::from_slice(&body).expect("JSON"))
}

/// The names of the items of a list.
pub(crate) fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["metadata"]["name"].as_str().expect("a name")).collect()
}

impl Response {
    /// The next piece of the body as it was framed; `None` after its proper end.
    pub(crate) fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let length = if let Some(left) = self.left {
            self.left = Some(0);
            if left == 0 {
                return Ok(None);
            }
            left
        } else {
            let mut size = String::new();
            self.reader.read_line(&mut size)?;
            usize::from_str_radix(size.trim(), 16).map_err(|_| io::Error::from(ErrorKind::UnexpectedEof))?
        };
        let chunked = self.left.is_none();
        let mut data = vec![0; length + if chunked { 2 } else { 0 }];
        self.reader.read_exact(&mut data)?;
        data.truncate(length);
        Ok((length > 0).then_some(data))
    }

    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut body = std::mem::take(&mut self.line);
        while let Some(piece) = self.piece()? {
            body.extend(piece);
        }
        Ok(body)
    }

    /// What comes of a stream until there are so many bytes, or so many lines, or it ends.
    pub(crate) fn exactly(&mut self, bytes: usize, lines: usize) -> Vec<u8> {
        let mut body = std::mem::take(&mut self.line);
        let complete = |body: &[u8]| {
            let found = body.iter().filter(|byte| **byte == b'\n').count();
            body.len() >= bytes || (bytes == usize::MAX && found >= lines)
        };
        while !complete(&body) {
            match self.piece() {
                Ok(Some(piece)) => body.extend(piece),
                Ok(None) => break,
                Err(error) => panic!("{error} after {} bytes", body.len()),
            }
        }
        body
    }

    /// The next line of a watch; `None` after the proper end of the body.
    pub(crate) fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.line.drain(..=end).collect()));
            }
            match self.piece()? {
                Some(piece) => self.line.extend(piece),
                None => return Ok(None),
            }
        }
    }

    /// The next event of a watch: its type and its object.
    #[track_caller]
    pub(crate) fn event(&mut self) -> (String, Value) {
        let line = self.line().expect("the watch lives").expect("the watch has not ended");
        let mut event: Value = serde_json::from_slice(&line).expect("JSON");
        (event["type"].as_str().expect("a type").to_owned(), event["object"].take())
    }

    /// The next event, briefly: `ADDED web`.
    #[track_caller]
    pub(crate) fn brief(&mut self) -> String {
        let (what, object) = self.event();
        format!("{what} {}", object["metadata"]["name"].as_str().unwrap_or("-"))
    }

    /// Whether nothing comes for a while.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.reader.get_ref().set_read_timeout(Some(SHORT)).expect("a timeout can be set");
        let silent = matches!(self.line(), Err(error) if error.kind() == ErrorKind::WouldBlock);
        self.reader.get_ref().set_read_timeout(Some(LONG)).expect("a timeout can be set");
        silent
    }

    /// The connection, for the next request.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.reader.into_inner()
    }
}
