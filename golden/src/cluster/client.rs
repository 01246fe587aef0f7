//! Clients: a place to connect from.
//!
//! In: a namespace, perhaps a source address, and where to. Out: who answered and what it saw of the client, or how it
//! failed. Refused and dropped are told apart, because users can tell them apart too.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::address::{Dual, Family, STRANGER};
use crate::netns::Netns;

/// How long a connection that should work may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A TCP connection per attempt.
    Tcp,
    /// A UDP socket, and so a flow of its own, per attempt.
    Udp,
}

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The pod that answered.
    pub pod: String,
    /// The client's address as the pod saw it.
    pub client: IpAddr,
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A reset or an ICMP message said no.
    Refused,
    /// Nothing came back.
    Dropped,
    /// Nothing translated it: it went where such an address leads without a Service, and the stranger answered.
    Astray,
    /// Anything else, in the kernel's words.
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

/// How soon a refusal comes: before any retransmission. A longer silence counts as dropped.
///
/// On a link without latency the ICMP message arrives while connect(2) still holds the socket. Linux then keeps it in
/// mind for IPv4, but forgets it for IPv6: there the refusal of the first retransmission, after a second, counts.
fn refusal_within(protocol: Protocol, to: SocketAddr) -> Duration {
    let forgotten = protocol == Protocol::Tcp && to.is_ipv6();
    Duration::from_millis(if forgotten { 1800 } else { 600 })
}

/// Somewhere to connect from.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    pub(super) netns: &'a Netns,
    pub(super) name: &'static str,
    pub(super) source: Option<Dual>,
}

impl Client<'_> {
    /// One attempt.
    ///
    /// # Errors
    /// When nobody answered within `patience`.
    ///
    /// # Panics
    /// When the answer makes no sense.
    pub fn try_within(&self, protocol: Protocol, to: SocketAddr, patience: Duration) -> Result<Answer, Failure> {
        self.netns.enter(|| match protocol {
            Protocol::Tcp => Ok(self.connect(to, patience)?.answer),
            Protocol::Udp => ask(&self.datagrams(to, patience)?),
        })
    }

    /// One attempt with all the patience a working connection may need.
    ///
    /// # Errors
    /// When nobody answered.
    pub fn attempt(&self, protocol: Protocol, to: SocketAddr) -> Result<Answer, Failure> {
        self.try_within(protocol, to, PATIENCE)
    }

    /// Whoever answers.
    ///
    /// # Panics
    /// When nobody does.
    #[must_use]
    #[track_caller]
    pub fn reach(&self, protocol: Protocol, to: SocketAddr) -> Answer {
        self.attempt(protocol, to).unwrap_or_else(|failure| panic!("{protocol:?} {} -> {to}: {failure:?}", self.name))
    }

    /// As `reach`, so many times over.
    #[must_use]
    #[track_caller]
    pub fn reach_times(&self, protocol: Protocol, to: SocketAddr, times: usize) -> Vec<Answer> {
        (0..times).map(|_| self.reach(protocol, to)).collect()
    }

    /// Asserts that the attempt is refused, and at once.
    ///
    /// # Panics
    /// When it is not.
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

    /// Asserts that nothing at all comes back.
    ///
    /// # Panics
    /// When something does.
    #[track_caller]
    pub fn dropped(&self, protocol: Protocol, to: SocketAddr) {
        let outcome = self.try_within(protocol, to, refusal_within(protocol, to));
        assert_eq!(outcome, Err(Failure::Dropped), "{protocol:?} {} -> {to}", self.name);
    }

    /// A TCP connection to keep.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn session(&self, to: SocketAddr) -> Session {
        let made = self.netns.enter(|| self.connect(to, PATIENCE));
        made.unwrap_or_else(|failure| panic!("{} -> {to}: {failure:?}", self.name))
    }

    /// A UDP socket to keep: all its packets are one flow.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn flow(&self, to: SocketAddr) -> Flow {
        Flow {
            socket: self.netns.enter(|| self.datagrams(to, refusal_within(Protocol::Udp, to))).expect("a UDP socket"),
        }
    }

    fn connect(&self, to: SocketAddr, patience: Duration) -> Result<Session, Failure> {
        let socket = self.socket(to, Type::STREAM, patience)?;
        socket.connect_timeout(&to.into(), patience)?;
        let mut reader = BufReader::new(TcpStream::from(socket));
        let mut greeting = String::new();
        reader.read_line(&mut greeting)?;
        Ok(Session { reader, answer: parse(&greeting)? })
    }

    fn datagrams(&self, to: SocketAddr, patience: Duration) -> std::io::Result<UdpSocket> {
        let socket = self.socket(to, Type::DGRAM, patience)?;
        // Connected, because only a connected UDP socket is told of an ICMP refusal.
        socket.connect(&to.into())?;
        Ok(socket.into())
    }

    fn socket(&self, to: SocketAddr, kind: Type, patience: Duration) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        socket.set_read_timeout(Some(patience))?;
        if let Some(source) = self.source {
            let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
            socket.bind(&source.at(family, 0).into())?;
        }
        Ok(socket)
    }
}

/// A TCP connection that stays open.
#[derive(Debug)]
pub struct Session {
    reader: BufReader<TcpStream>,
    answer: Answer,
}

impl Session {
    /// Who answered when it was opened.
    #[must_use]
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Ends it by a reset: the kernel's tables forget such a connection soon.
    ///
    /// # Panics
    /// When the socket does not take that.
    pub fn abort(self) {
        socket2::SockRef::from(self.reader.get_ref()).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    }

    /// Asserts that bytes still go there and back.
    ///
    /// # Panics
    /// When they do not.
    #[track_caller]
    pub fn still_works(&mut self) {
        let mut echo = [0; 5];
        self.reader.get_mut().write_all(b"hello").expect("send on the open connection");
        self.reader.read_exact(&mut echo).expect("an echo on the open connection");
        assert_eq!(&echo, b"hello");
    }
}

/// A UDP socket that stays open.
#[derive(Debug)]
pub struct Flow {
    socket: UdpSocket,
}

impl Flow {
    /// One more packet of the same flow, and its answer.
    ///
    /// # Errors
    /// When there is none.
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
    let (pod, client) = line.trim_end().split_once(' ').unwrap_or_else(|| panic!("an answer, not {line:?}"));
    let client: SocketAddr = client.parse().unwrap_or_else(|e| panic!("{client}: {e}"));
    if pod == STRANGER.name {
        return Err(Failure::Astray);
    }
    Ok(Answer { pod: pod.to_owned(), client: client.ip() })
}
