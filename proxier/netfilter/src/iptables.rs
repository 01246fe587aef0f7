//! iptables: tables, chains and rules as values.
//!
//! In: typed matches and targets. Out: lines as `iptables-save` prints and `iptables-restore` reads them, options in
//! the order in which `iptables-save` puts them, so that what was written can be compared with what is there.
//! Must not know: Kubernetes, or who runs the tools.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::name::Name;
use crate::IpFamily;

/// A table.
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
    /// Those that kube-proxy has chains in.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Nat, Self::Mangle];

    /// The name after `-t`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
        }
    }

    /// The line that a table begins with in the text of the save and restore tools.
    pub(super) fn head(self) -> &'static str {
        match self {
            Self::Filter => "*filter\n",
            Self::Nat => "*nat\n",
            Self::Mangle => "*mangle\n",
        }
    }
}

/// The longest chain name that the kernel takes (`XT_EXTENSION_MAXNAMELEN` less the final NUL).
pub const CHAIN_NAME_MAX: usize = 28;

/// The name of a chain.
pub type Chain = Name<CHAIN_NAME_MAX>;

/// A value that a packet must have, or with `!` must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negatable<T> {
    /// `!`
    pub not: bool,
    /// The value.
    pub value: T,
}

impl<T> Negatable<T> {
    /// It must be so.
    pub const fn new(value: T) -> Self {
        Self { not: false, value }
    }

    /// It must not be so.
    pub const fn not(value: T) -> Self {
        Self { not: true, value }
    }
}

/// The transport protocol of `-p`.
pub type ProtocolName = &'static str;

/// A match of `-m`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `-m comment --comment "…"`: the text itself, printed with what `prefix` and `suffix` add.
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
        /// Which parts of the packet are looked up: `dst,dst,src`.
        directions: &'static str,
    },
    /// `-m ipvs --vproto P --vaddr A --vport N`: the packet belongs to a connection of that virtual server.
    Ipvs {
        /// The protocol's number.
        protocol: u8,
        /// The virtual server.
        address: SocketAddr,
    },
    /// `-m tcp --dport N` (by protocol)
    DestinationPort(ProtocolName, u16),
    /// `-m tcp`: says nothing, but iptables prints it where a target needs ports.
    Transport(ProtocolName),
    /// `-m statistic --mode random`: one in so many.
    OneIn(u32),
    /// `-m recent --rcheck --seconds N --reap`: the source is in the list of that name and was seen lately.
    RecentlySeen {
        /// The list.
        list: Chain,
        /// Seconds.
        seconds: u32,
        /// Whole addresses of this family.
        family: IpFamily,
    },
    /// `-m recent --set`: puts the source on the list of that name. Always matches.
    RememberSource {
        /// The list.
        list: Chain,
        /// Whole addresses of this family.
        family: IpFamily,
    },
    /// `-m nfacct --nfacct-name N`: counts. Always matches.
    Account(&'static str),
}

/// The text of a comment in up to three parts, so that rules of one Service share its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    /// What stands before the subject.
    pub prefix: &'static str,
    /// What it is about.
    pub subject: Arc<str>,
    /// What stands after it.
    pub suffix: Suffix,
}

/// What a comment ends in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suffix {
    /// Fixed words.
    Text(&'static str),
    /// ` -> ADDRESS`
    Endpoint(SocketAddr),
    /// Fixed words and a chain's name.
    Chain(&'static str, Chain),
}

/// What happens to a packet that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `-j CHAIN`
    Jump(Chain),
    /// `-j ACCEPT`
    Accept,
    /// `-j DROP`
    Drop,
    /// `-j REJECT --reject-with …`, a port unreachable of this family
    Reject(IpFamily),
    /// `-j RETURN`
    Return,
    /// `-j MARK --set-xmark V/V`: sets the bits of V
    SetMark(u32),
    /// `-j MARK --set-xmark V/0x0`: flips the bits of V
    FlipMark(u32),
    /// `-j MASQUERADE`, with `--random-fully` where the kernel and the tool know it
    Masquerade {
        /// `--random-fully`
        random_fully: bool,
    },
    /// `-j DNAT --to-destination ADDRESS`
    Dnat(SocketAddr),
}

/// One rule, without the chain that it stands in.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// `-s`
    pub source: Option<Negatable<IpNet>>,
    /// `-d`
    pub destination: Option<Negatable<IpNet>>,
    /// `-i`; a final `+` stands for any end of the name.
    pub in_interface: Option<Negatable<String>>,
    /// `-p`
    pub protocol: Option<ProtocolName>,
    /// `-m …`, in order: those before the first that does not match have their effects.
    pub matches: Vec<Match>,
    /// `-j`; without one the rule only counts packets.
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

/// The rule without its chain, with a blank before each option.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(160);
        self.write_to(&mut text);
        f.write_str(&text)
    }
}

impl Match {
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
                write(out, format_args!("{:.11}", probability(*n)));
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

/// One in `n` as the kernel holds it, 31 bits after the point, and as `iptables-save` therefore prints it.
fn probability(n: u32) -> f64 {
    const ONE: f64 = 2_147_483_648.0;
    // The tool parses ten decimals, kube-proxy's precision, and rounds to the next of the kernel's steps.
    let decimals = (1e10 / f64::from(n)).round() / 1e10;
    (decimals * ONE).round() / ONE
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
