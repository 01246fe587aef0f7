//! iptables tables, chains and rules as values.
//!
//! Rules are displayed as `iptables-save` prints and `iptables-restore` reads them, with options in the order of
//! `iptables-save`, so that a written rule can be compared with the rule that is read back.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::name::Name;
use crate::IpFamily;

/// An iptables table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `filter`
    Filter,
    /// `nat`
    Nat,
    /// `mangle`
    Mangle,
}

impl Table {
    /// All tables that this crate writes.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Nat, Self::Mangle];

    /// The name, as after `-t`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
        }
    }

    /// The first line of the table in the format of `iptables-save`.
    pub(super) fn head(self) -> &'static str {
        match self {
            Self::Filter => "*filter\n",
            Self::Nat => "*nat\n",
            Self::Mangle => "*mangle\n",
        }
    }
}

/// The longest chain name in bytes (`XT_EXTENSION_MAXNAMELEN` - 1).
pub const CHAIN_NAME_MAX: usize = 28;

/// The name of a chain.
pub type Chain = Name<CHAIN_NAME_MAX>;

/// A value to match, or to exclude with `!`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negatable<T> {
    /// Whether the match is negated (`!`).
    pub not: bool,
    /// The value.
    pub value: T,
}

impl<T> Negatable<T> {
    /// Matches the value.
    pub const fn new(value: T) -> Self {
        Self { not: false, value }
    }

    /// Matches anything but the value.
    pub const fn not(value: T) -> Self {
        Self { not: true, value }
    }
}

/// The name of a transport protocol, as after `-p`.
pub type ProtocolName = &'static str;

/// A match extension (`-m`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `-m comment --comment "…"`
    Comment(Comment),
    /// `-m conntrack --ctstate A,B`
    CtState(Negatable<&'static str>),
    /// `-m mark --mark V/V`
    Mark(Negatable<u32>),
    /// `-m addrtype --src-type LOCAL`
    SourceIsLocal,
    /// `-m addrtype ! --src-type LOCAL`
    SourceIsNotLocal,
    /// `-m addrtype --dst-type LOCAL`
    DestinationIsLocal,
    /// `-m physdev ! --physdev-is-in`
    NotFromBridge,
    /// `-m set --match-set NAME DIRECTIONS`
    Set {
        /// The set.
        name: &'static str,
        /// The packet fields to look up, such as `dst,dst,src`.
        directions: &'static str,
    },
    /// `-m ipvs --vproto P --vaddr A --vport N`: the packet belongs to a connection of that virtual server.
    Ipvs {
        /// The IP protocol number.
        protocol: u8,
        /// The address and port of the virtual server.
        address: SocketAddr,
    },
    /// `-m tcp --dport N`, with the protocol's own extension.
    DestinationPort(ProtocolName, u16),
    /// `-m tcp` without options, which iptables prints where a target needs ports.
    Transport(ProtocolName),
    /// `-m statistic --mode random`: matches one packet in so many.
    OneIn(u32),
    /// `-m recent --rcheck --seconds N --reap`: the source address is in the list and was seen recently.
    RecentlySeen {
        /// The name of the list.
        list: Chain,
        /// The maximum age in seconds.
        seconds: u32,
        /// The family, whose full-length mask is used.
        family: IpFamily,
    },
    /// `-m recent --set`: adds the source address to the list. Always matches.
    RememberSource {
        /// The name of the list.
        list: Chain,
        /// The family, whose full-length mask is used.
        family: IpFamily,
    },
    /// `-m nfacct --nfacct-name N`: counts the packet. Always matches.
    Account(&'static str),
}

/// The text of a comment in three parts, of which rules can share the subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    /// The text before the subject.
    pub prefix: &'static str,
    /// The subject, quoted where necessary.
    pub subject: Arc<str>,
    /// The text after the subject.
    pub suffix: Suffix,
}

/// The last part of a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suffix {
    /// A fixed text.
    Text(&'static str),
    /// ` -> ADDRESS`
    Endpoint(SocketAddr),
    /// A fixed text and a chain's name.
    Chain(&'static str, Chain),
}

/// The target of a rule (`-j`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `-j CHAIN`
    Jump(Chain),
    /// `-j ACCEPT`
    Accept,
    /// `-j DROP`
    Drop,
    /// `-j REJECT --reject-with …`, port unreachable of this family
    Reject(IpFamily),
    /// `-j RETURN`
    Return,
    /// `-j MARK --set-xmark V/V`: sets the bits of V.
    SetMark(u32),
    /// `-j MARK --set-xmark V/0x0`: flips the bits of V.
    FlipMark(u32),
    /// `-j MASQUERADE`, with `--random-fully` where kernel and tool support it.
    Masquerade {
        /// `--random-fully`
        random_fully: bool,
    },
    /// `-j DNAT --to-destination ADDRESS`
    Dnat(SocketAddr),
}

/// One rule, without its chain.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// `-s`
    pub source: Option<Negatable<IpNet>>,
    /// `-d`
    pub destination: Option<Negatable<IpNet>>,
    /// `-i`; a trailing `+` matches any suffix.
    pub in_interface: Option<Negatable<String>>,
    /// `-p`
    pub protocol: Option<ProtocolName>,
    /// `-m …`, in order. Matches before the first one that fails have their side effects.
    pub matches: Vec<Match>,
    /// `-j`; a rule without a target only counts packets.
    pub target: Option<Target>,
}

impl Rule {
    /// Appends the rule's text, without `-A CHAIN`, to `out`.
    pub fn write_to(&self, out: &mut String) {
        if let Some(source) = &self.source {
            write_is(out, source, "-s ", write_net);
        }
        if let Some(destination) = &self.destination {
            write_is(out, destination, "-d ", write_net);
        }
        if let Some(interface) = &self.in_interface {
            write_is(out, interface, "-i ", |out, name| out.push_str(name));
        }
        if let Some(protocol) = self.protocol {
            push(out, &[" -p ", protocol]);
        }
        for one in &self.matches {
            one.write_to(out);
        }
        if let Some(target) = &self.target {
            target.write_to(out);
        }
    }
}

/// The rule without its chain, with a space before each option.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(160);
        self.write_to(&mut text);
        f.write_str(&text)
    }
}

impl Match {
    /// The probability 1/`n` as iptables prints it.
    pub(crate) fn probability(n: u32) -> f64 {
        f64::from(random_share(n)) / ONE
    }

    fn write_to(&self, out: &mut String) {
        match self {
            Self::Comment(comment) => comment.write_to(out),
            Self::CtState(states) => {
                out.push_str(" -m conntrack");
                write_is(out, states, "--ctstate ", |out, states| out.push_str(states));
            }
            Self::Mark(mark) => {
                out.push_str(" -m mark");
                write_is(out, mark, "--mark ", |out, mark| write(out, format_args!("{mark:#x}/{mark:#x}")));
            }
            Self::SourceIsLocal => out.push_str(" -m addrtype --src-type LOCAL"),
            Self::SourceIsNotLocal => out.push_str(" -m addrtype ! --src-type LOCAL"),
            Self::NotFromBridge => out.push_str(" -m physdev ! --physdev-is-in"),
            Self::Set { name, directions } => push(out, &[" -m set --match-set ", name, " ", directions]),
            Self::Ipvs { protocol, address } => {
                let (ip, port) = (address.ip(), address.port());
                write(out, format_args!(" -m ipvs --vproto {protocol} --vaddr {ip} --vport {port}"));
            }
            Self::DestinationIsLocal => out.push_str(" -m addrtype --dst-type LOCAL"),
            Self::DestinationPort(protocol, port) => {
                push(out, &[" -m ", protocol, " --dport "]);
                write(out, format_args!("{port}"));
            }
            Self::Transport(protocol) => push(out, &[" -m ", protocol]),
            Self::OneIn(n) => {
                push(out, &[" -m statistic --mode random --probability "]);
                write(out, format_args!("{:.11}", Self::probability(*n)));
            }
            Self::RecentlySeen { list, seconds, family } => {
                write(out, format_args!(" -m recent --rcheck --seconds {seconds} --reap --name {list}"));
                push(out, &[" --mask ", family.recent_mask(), " --rsource"]);
            }
            Self::RememberSource { list, family } => {
                push(out, &[" -m recent --set --name ", list.as_str(), " --mask ", family.recent_mask()]);
                out.push_str(" --rsource");
            }
            Self::Account(name) => push(out, &[" -m nfacct --nfacct-name ", name]),
        }
    }
}

/// The probability 1.0 as the kernel stores it.
const ONE: f64 = 2_147_483_648.0;

/// The probability 1/`n` as the kernel stores it: with 31 fractional bits.
pub(crate) fn random_share(n: u32) -> u32 {
    // iptables parses ten decimals and rounds to the nearest multiple of 2^-31.
    let decimals = (1e10 / f64::from(n)).round() / 1e10;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most 2^31
    let share = (decimals * ONE).round() as u32;
    share
}

impl Comment {
    fn write_to(&self, out: &mut String) {
        out.push_str(" -m comment --comment \"");
        out.push_str(self.prefix);
        for c in self.subject.chars() {
            if matches!(c, '"' | '\\' | '\'') {
                out.push('\\');
            }
            out.push(c);
        }
        match &self.suffix {
            Suffix::Text(text) => out.push_str(text),
            Suffix::Endpoint(address) => write(out, format_args!(" -> {address}")),
            Suffix::Chain(text, chain) => push(out, &[text, chain.as_str()]),
        }
        out.push('"');
    }
}

impl Target {
    fn write_to(&self, out: &mut String) {
        match self {
            Self::Jump(chain) => push(out, &[" -j ", chain.as_str()]),
            Self::Accept => out.push_str(" -j ACCEPT"),
            Self::Drop => out.push_str(" -j DROP"),
            Self::Reject(family) => push(out, &[" -j REJECT --reject-with ", family.reject_with()]),
            Self::Return => out.push_str(" -j RETURN"),
            Self::SetMark(mark) => write(out, format_args!(" -j MARK --set-xmark {mark:#x}/{mark:#x}")),
            Self::FlipMark(mark) => write(out, format_args!(" -j MARK --set-xmark {mark:#x}/0x0")),
            Self::Masquerade { random_fully } => {
                out.push_str(" -j MASQUERADE");
                if *random_fully {
                    out.push_str(" --random-fully");
                }
            }
            Self::Dnat(address) => write(out, format_args!(" -j DNAT --to-destination {address}")),
        }
    }
}

fn write_is<T>(out: &mut String, is: &Negatable<T>, option: &str, value: impl Fn(&mut String, &T)) {
    push(out, &[if is.not { " ! " } else { " " }, option]);
    value(out, &is.value);
}

fn write_net(out: &mut String, net: &IpNet) {
    write(out, format_args!("{}/{}", net.network(), net.prefix_len()));
}

fn write(out: &mut String, args: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(args);
}

fn push(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
}

/// Whether rule text ends inside a quoted word, as a line does whose comment has a line break.
///
/// `iptables-save` writes a quote inside quotes as `\"`.
#[must_use]
pub fn has_open_quote(text: &str) -> bool {
    let (mut open, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if open => escaped = true,
            b'"' => open = !open,
            _ => {}
        }
    }
    open
}
