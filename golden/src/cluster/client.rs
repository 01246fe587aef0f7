//! Clients, which report the answering pod or the kind of failure.
//!
//! Refused and dropped connections are distinguished, because users see the difference.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::address::{Dual, Family, STRANGER};
use crate::netns::Netns;

/// The timeout for a connection that should succeed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The transport protocol of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// One TCP connection for each attempt.
    Tcp,
    /// One UDP socket, and so one flow, for each attempt.
    Udp,
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The name of the pod.
    pub pod: String,
    /// The client's address as the pod saw it.
    pub client: IpAddr,
}

/// The reason why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A TCP reset or an ICMP error.
    Refused,
    /// No answer before the timeout.
    Dropped,
    /// The packet was not translated, and the stranger answered.
    Astray,
    /// Another error of the kernel.
    Other(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Dropped,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// The time within which a refusal arrives; a longer silence counts as dropped.
///
/// Without latency, the ICMP error arrives while connect(2) holds the socket. Linux remembers it for IPv4 and forgets
/// it for IPv6, where the refusal of the first retransmission, after a second, counts.
fn refusal_within(protocol: Protocol, to: SocketAddr) -> Duration {
    let forgotten = protocol == Protocol::Tcp && to.is_ipv6();
    Duration::from_millis(if forgotten { 1800 } else { 600 })
}

/// A place to connect from.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    pub(super) netns: &'a Netns,
    pub(super) name: &'static str,
    pub(super) source: Option<Dual>,
    /// The source port; 0: any.
    pub(super) port: u16,
}

impl Client<'_> {
    /// The name of its host.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The same client with a source port, for one attempt at a time.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// One attempt with a timeout.
    ///
    /// # Errors
    /// If there is no answer before the timeout.
    ///
    /// # Panics
    /// If the answer is malformed.
    pub fn try_within(&self, protocol: Protocol, to: SocketAddr, timeout: Duration) -> Result<Answer, Failure> {
        self.netns.enter(|| match protocol {
            Protocol::Tcp => Ok(self.connect(to, timeout)?.answer),
            Protocol::Udp => ask(&self.datagrams(to, timeout)?),
        })
    }

    /// One attempt with the default timeout.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn attempt(&self, protocol: Protocol, to: SocketAddr) -> Result<Answer, Failure> {
        self.try_within(protocol, to, CONNECT_TIMEOUT)
    }

    /// The answer of one attempt.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn reach(&self, protocol: Protocol, to: SocketAddr) -> Answer {
        self.attempt(protocol, to).unwrap_or_else(|failure| panic!("{protocol:?} {} -> {to}: {failure:?}", self.name))
    }

    /// The answers of several attempts.
    #[must_use]
    #[track_caller]
    pub fn reach_times(&self, protocol: Protocol, to: SocketAddr, times: usize) -> Vec<Answer> {
        (0..times).map(|_| self.reach(protocol, to)).collect()
    }

    /// Sends datagrams of one flow, whatever becomes of them.
    ///
    /// # Panics
    /// If there is no socket.
    pub fn send(&self, to: SocketAddr, times: u64) {
        self.netns.enter(|| {
            let socket = self.socket(to, Type::DGRAM, CONNECT_TIMEOUT).expect("a UDP socket");
            // Where the node itself drops them, the kernel tells the sender.
            (0..times).for_each(|_| _ = socket.send_to(b"?", &to.into()));
        });
    }

    /// Asserts that the attempt is refused at once.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn refused(&self, protocol: Protocol, to: SocketAddr) {
        let start = Instant::now();
        let outcome = self.attempt(protocol, to);
        let took = start.elapsed();
        assert_eq!(outcome, Err(Failure::Refused), "{protocol:?} {} -> {to}", self.name);
        assert!(
            took < refusal_within(protocol, to),
            "{protocol:?} {} -> {to} was refused only after {took:?}",
            self.name
        );
    }

    /// Asserts that the attempt gets no answer.
    ///
    /// # Panics
    /// If it gets one.
    #[track_caller]
    pub fn dropped(&self, protocol: Protocol, to: SocketAddr) {
        let outcome = self.try_within(protocol, to, refusal_within(protocol, to));
        assert_eq!(outcome, Err(Failure::Dropped), "{protocol:?} {} -> {to}", self.name);
    }

    /// Opens a TCP connection.
    ///
    /// # Panics
    /// If it cannot be opened.
    #[must_use]
    #[track_caller]
    pub fn session(&self, to: SocketAddr) -> Session {
        let made = self.netns.enter(|| self.connect(to, CONNECT_TIMEOUT));
        made.unwrap_or_else(|failure| panic!("{} -> {to}: {failure:?}", self.name))
    }

    /// Opens a UDP socket, whose packets are one flow.
    ///
    /// # Panics
    /// If it cannot be opened.
    #[must_use]
    #[track_caller]
    pub fn flow(&self, to: SocketAddr) -> Flow {
        Flow {
            socket: self.netns.enter(|| self.datagrams(to, refusal_within(Protocol::Udp, to))).expect("a UDP socket"),
        }
    }

    fn connect(&self, to: SocketAddr, timeout: Duration) -> Result<Session, Failure> {
        let socket = self.socket(to, Type::STREAM, timeout)?;
        socket.connect_timeout(&to.into(), timeout)?;
        let mut reader = BufReader::new(TcpStream::from(socket));
        let mut greeting = String::new();
        reader.read_line(&mut greeting)?;
        Ok(Session { reader, answer: parse(&greeting)? })
    }

    fn datagrams(&self, to: SocketAddr, timeout: Duration) -> std::io::Result<UdpSocket> {
        let socket = self.socket(to, Type::DGRAM, timeout)?;
        // Only a connected UDP socket receives ICMP errors.
        socket.connect(&to.into())?;
        Ok(socket.into())
    }

    fn socket(&self, to: SocketAddr, kind: Type, timeout: Duration) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        socket.set_read_timeout(Some(timeout))?;
        if let Some(source) = self.source {
            let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
            socket.bind(&source.at(family, self.port).into())?;
        }
        Ok(socket)
    }
}

/// An open TCP connection.
#[derive(Debug)]
pub struct Session {
    reader: BufReader<TcpStream>,
    answer: Answer,
}

impl Session {
    /// The answer received when it was opened.
    #[must_use]
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Resets the connection, so that the kernel soon forgets it.
    ///
    /// # Panics
    /// If the socket cannot be configured.
    pub fn abort(self) {
        socket2::SockRef::from(self.reader.get_ref()).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    }

    /// Sends data without waiting for the echo.
    ///
    /// # Panics
    /// If the connection is reset already.
    pub fn request(&mut self) {
        self.reader.get_mut().write_all(b"hello").expect("send on the open connection");
    }

    /// Whether the connection is reset within a time, without anything sent on it.
    ///
    /// # Panics
    /// If data arrives, or the connection ends in another way.
    #[must_use]
    pub fn is_reset(&mut self, timeout: Duration) -> bool {
        let timeout = timeout.max(Duration::from_millis(1));
        self.reader.get_ref().set_read_timeout(Some(timeout)).expect("a TCP socket");
        match self.reader.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            other => panic!("neither a reset nor silence: {other:?}"),
        }
    }

    /// Asserts that data is still echoed.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn still_works(&mut self) {
        let mut echo = [0; 5];
        self.reader.get_mut().write_all(b"hello").expect("send on the open connection");
        self.reader.read_exact(&mut echo).expect("an echo on the open connection");
        assert_eq!(&echo, b"hello");
    }
}

/// An open UDP socket.
#[derive(Debug)]
pub struct Flow {
    socket: UdpSocket,
}

impl Flow {
    /// Sends another packet of the flow and waits for the answer.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn attempt(&self) -> Result<Answer, Failure> {
        ask(&self.socket)
    }
}

fn ask(socket: &UdpSocket) -> Result<Answer, Failure> {
    let mut packet = [0; 128];
    socket.send(b"who are you?")?;
    let length = socket.recv(&mut packet)?;
    parse(&String::from_utf8_lossy(&packet[..length]))
}

fn parse(line: &str) -> Result<Answer, Failure> {
    // As by the proxy of localhost node ports when the last endpoint goes.
    if line.is_empty() {
        return Err(Failure::Other("the connection was closed without an answer".to_owned()));
    }
    let (pod, client) = line.trim_end().split_once(' ').unwrap_or_else(|| panic!("an answer, not {line:?}"));
    let client: SocketAddr = client.parse().unwrap_or_else(|e| panic!("{client}: {e}"));
    if pod == STRANGER.name {
        return Err(Failure::Astray);
    }
    Ok(Answer { pod: pod.to_owned(), client: client.ip() })
}
