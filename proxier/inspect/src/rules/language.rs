//! The matches and targets of iptables, and how far a walk supports each.
//!
//! One line for each extension of Debian's iptables package: its options with the number of their values, and
//! whether its rules are decided exactly, by an assumption, or not at all.

/// How a walk decides about an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As the kernel does.
    Exact,
    /// By an assumption about the packet, which the trace names.
    Assumed,
    /// Not at all: the trace names the rule and the reason.
    Doubt,
}

/// A match or a target.
#[derive(Debug)]
pub struct Extension {
    /// The word after `-m` or `-j`.
    pub name: &'static str,
    /// How it is decided.
    pub grasp: Support,
    /// The assumption, or why the extension cannot be decided.
    pub why: &'static str,
    /// Its options, and how many values each takes.
    pub(super) options: &'static [(&'static str, u8)],
}

impl Extension {
    /// How many values an option takes; `None` if it has no such option.
    pub(super) fn values(&self, option: &str) -> Option<u8> {
        self.options.iter().find(|(name, _)| *name == option).map(|(_, values)| *values)
    }
}

/// The match of that name.
#[must_use]
pub fn match_of(name: &str) -> Option<&'static Extension> {
    MATCHES.iter().find(|extension| extension.name == name)
}

/// The target of that name; a chain is none.
#[must_use]
pub fn target_of(name: &str) -> Option<&'static Extension> {
    TARGETS.iter().find(|extension| extension.name == name)
}

const fn exact(name: &'static str, options: &'static [(&'static str, u8)]) -> Extension {
    Extension { name, grasp: Support::Exact, why: "", options }
}

const fn assumed(name: &'static str, why: &'static str, options: &'static [(&'static str, u8)]) -> Extension {
    Extension { name, grasp: Support::Assumed, why, options }
}

const fn doubt(name: &'static str, why: &'static str, options: &'static [(&'static str, u8)]) -> Extension {
    Extension { name, grasp: Support::Doubt, why, options }
}

const PORTS: &[(&str, u8)] = &[("--dport", 1), ("--sport", 1)];
const LIMIT: &str = "its limit is not used up";

/// All matches.
pub const MATCHES: &[Extension] = &[
    exact("addrtype", &[("--src-type", 1), ("--dst-type", 1), ("--limit-iface-in", 0), ("--limit-iface-out", 0)]),
    exact("ah", &[("--ahspi", 1), ("--ahlen", 1), ("--ahres", 0)]),
    doubt("bpf", "a BPF program decides", &[("--bytecode", 1), ("--object-pinned", 1)]),
    doubt("cgroup", "the sender's control group is not known", &[("--path", 1), ("--cgroup", 1)]),
    doubt(
        "cluster",
        "which node of the cluster takes the connection is not computed",
        &[
            ("--cluster-total-nodes", 1),
            ("--cluster-local-node", 1),
            ("--cluster-local-nodemask", 1),
            ("--cluster-hash-seed", 1),
        ],
    ),
    exact("comment", &[("--comment", 1)]),
    assumed(
        "connbytes",
        "it is the connection's first packet",
        &[("--connbytes", 1), ("--connbytes-dir", 1), ("--connbytes-mode", 1)],
    ),
    doubt("connlabel", "labels of connections are not followed", &[("--label", 1), ("--set", 0)]),
    assumed(
        "connlimit",
        "its limit of connections is not reached",
        &[
            ("--connlimit-upto", 1),
            ("--connlimit-above", 1),
            ("--connlimit-mask", 1),
            ("--connlimit-saddr", 0),
            ("--connlimit-daddr", 0),
        ],
    ),
    exact("connmark", &[("--mark", 1)]),
    exact(
        "conntrack",
        &[
            ("--ctstate", 1),
            ("--ctproto", 1),
            ("--ctorigsrc", 1),
            ("--ctorigdst", 1),
            ("--ctreplsrc", 1),
            ("--ctrepldst", 1),
            ("--ctorigsrcport", 1),
            ("--ctorigdstport", 1),
            ("--ctreplsrcport", 1),
            ("--ctrepldstport", 1),
            ("--ctstatus", 1),
            ("--ctexpire", 1),
            ("--ctdir", 1),
        ],
    ),
    doubt("cpu", "which processor takes the packet is not known", &[("--cpu", 1)]),
    exact("dccp", &[("--dport", 1), ("--sport", 1), ("--dccp-types", 1), ("--dccp-option", 1)]),
    exact("devgroup", &[("--src-group", 1), ("--dst-group", 1)]),
    assumed("dscp", "the sender sets no DSCP", &[("--dscp", 1), ("--dscp-class", 1)]),
    assumed("dst", "the packet has no extension headers", &[("--dst-len", 1), ("--dst-opts", 1)]),
    assumed("ecn", "the sender does not use ECN", &[("--ecn-tcp-cwr", 0), ("--ecn-tcp-ece", 0), ("--ecn-ip-ect", 1)]),
    exact("esp", &[("--espspi", 1)]),
    doubt("eui64", "the sender's hardware address is not known", &[]),
    assumed(
        "frag",
        "the packet has no extension headers",
        &[
            ("--fragid", 1),
            ("--fraglen", 1),
            ("--fragres", 0),
            ("--fragfirst", 0),
            ("--fragmore", 0),
            ("--fraglast", 0),
        ],
    ),
    assumed(
        "hashlimit",
        LIMIT,
        &[
            ("--hashlimit", 1),
            ("--hashlimit-upto", 1),
            ("--hashlimit-above", 1),
            ("--hashlimit-burst", 1),
            ("--hashlimit-mode", 1),
            ("--hashlimit-name", 1),
            ("--hashlimit-srcmask", 1),
            ("--hashlimit-dstmask", 1),
            ("--hashlimit-htable-size", 1),
            ("--hashlimit-htable-max", 1),
            ("--hashlimit-htable-expire", 1),
            ("--hashlimit-htable-gcinterval", 1),
            ("--hashlimit-rate-match", 0),
            ("--hashlimit-rate-interval", 1),
        ],
    ),
    assumed("hbh", "the packet has no extension headers", &[("--hbh-len", 1), ("--hbh-opts", 1)]),
    exact("helper", &[("--helper", 1)]),
    assumed("hl", "this node's own packets have hop limit 64", &[("--hl-eq", 1), ("--hl-lt", 1), ("--hl-gt", 1)]),
    exact("icmp", &[("--icmp-type", 1)]),
    exact("icmp6", &[("--icmpv6-type", 1)]),
    exact("ipcomp", &[("--ipcompspi", 1), ("--compres", 0)]),
    exact("iprange", &[("--src-range", 1), ("--dst-range", 1)]),
    assumed("ipv6header", "the packet has no extension headers", &[("--header", 1), ("--soft", 0)]),
    exact(
        "ipvs",
        &[
            ("--ipvs", 0),
            ("--vproto", 1),
            ("--vaddr", 1),
            ("--vport", 1),
            ("--vdir", 1),
            ("--vmethod", 1),
            ("--vportctl", 1),
        ],
    ),
    assumed("length", "a TCP connection begins with a packet of 40 to 80 bytes and options", &[("--length", 1)]),
    assumed("limit", LIMIT, &[("--limit", 1), ("--limit-burst", 1)]),
    doubt("mac", "the sender's hardware address is not known", &[("--mac-source", 1)]),
    exact("mark", &[("--mark", 1)]),
    exact("mh", &[("--mh-type", 1)]),
    exact(
        "multiport",
        &[("--dports", 1), ("--sports", 1), ("--ports", 1), ("--destination-ports", 1), ("--source-ports", 1)],
    ),
    exact("nfacct", &[("--nfacct-name", 1)]),
    doubt("osf", "the sender's operating system is not known", &[("--genre", 1), ("--ttl", 1), ("--log", 1)]),
    assumed(
        "owner",
        "this node's own packets come from a process of root",
        &[("--uid-owner", 1), ("--gid-owner", 1), ("--socket-exists", 0), ("--suppl-groups", 0)],
    ),
    exact(
        "physdev",
        &[
            ("--physdev-in", 1),
            ("--physdev-out", 1),
            ("--physdev-is-in", 0),
            ("--physdev-is-out", 0),
            ("--physdev-is-bridged", 0),
        ],
    ),
    exact("pkttype", &[("--pkt-type", 1)]),
    assumed(
        "policy",
        "no IPsec transforms the packet",
        &[
            ("--dir", 1),
            ("--pol", 1),
            ("--strict", 0),
            ("--reqid", 1),
            ("--spi", 1),
            ("--proto", 1),
            ("--mode", 1),
            ("--tunnel-src", 1),
            ("--tunnel-dst", 1),
            ("--next", 0),
        ],
    ),
    assumed("quota", "its quota is not used up", &[("--quota", 1)]),
    doubt(
        "rateest",
        "measured rates are not read",
        &[
            ("--rateest", 1),
            ("--rateest1", 1),
            ("--rateest2", 1),
            ("--rateest-delta", 0),
            ("--rateest-lt", 0),
            ("--rateest-gt", 0),
            ("--rateest-eq", 0),
        ],
    ),
    assumed("realm", "its route has no realm", &[("--realm", 1)]),
    exact(
        "recent",
        &[
            ("--set", 0),
            ("--rcheck", 0),
            ("--update", 0),
            ("--remove", 0),
            ("--rttl", 0),
            ("--reap", 0),
            ("--rsource", 0),
            ("--rdest", 0),
            ("--seconds", 1),
            ("--hitcount", 1),
            ("--name", 1),
            ("--mask", 1),
        ],
    ),
    exact("rpfilter", &[("--loose", 0), ("--validmark", 0), ("--accept-local", 0), ("--invert", 0)]),
    assumed(
        "rt",
        "the packet has no extension headers",
        &[
            ("--rt-type", 1),
            ("--rt-segsleft", 1),
            ("--rt-len", 1),
            ("--rt-0-res", 0),
            ("--rt-0-addrs", 1),
            ("--rt-0-not-strict", 0),
        ],
    ),
    assumed(
        "sctp",
        "an SCTP association begins with an INIT chunk",
        &[("--dport", 1), ("--sport", 1), ("--chunk-types", 2)],
    ),
    exact(
        "set",
        &[
            ("--match-set", 2),
            ("--return-nomatch", 0),
            ("--update-counters", 0),
            ("--update-subcounters", 0),
            ("--packets-eq", 1),
            ("--packets-lt", 1),
            ("--packets-gt", 1),
            ("--bytes-eq", 1),
            ("--bytes-lt", 1),
            ("--bytes-gt", 1),
        ],
    ),
    doubt(
        "socket",
        "which sockets are open is not read",
        &[("--transparent", 0), ("--nowildcard", 0), ("--restore-skmark", 0)],
    ),
    assumed(
        "srh",
        "the packet has no extension headers",
        &[
            ("--srh-next-hdr", 1),
            ("--srh-hdr-len-eq", 1),
            ("--srh-hdr-len-gt", 1),
            ("--srh-hdr-len-lt", 1),
            ("--srh-segs-left-eq", 1),
            ("--srh-segs-left-gt", 1),
            ("--srh-segs-left-lt", 1),
            ("--srh-last-entry-eq", 1),
            ("--srh-last-entry-gt", 1),
            ("--srh-last-entry-lt", 1),
            ("--srh-tag", 1),
            ("--srh-psid", 1),
            ("--srh-nsid", 1),
            ("--srh-lsid", 1),
        ],
    ),
    exact("state", &[("--state", 1)]),
    exact("statistic", &[("--mode", 1), ("--probability", 1), ("--every", 1), ("--packet", 1)]),
    doubt(
        "string",
        "what the packet carries is not known",
        &[("--string", 1), ("--hex-string", 1), ("--algo", 1), ("--from", 1), ("--to", 1), ("--icase", 0)],
    ),
    exact("tcp", &[("--dport", 1), ("--sport", 1), ("--tcp-flags", 2), ("--syn", 0), ("--tcp-option", 1)]),
    assumed("tcpmss", "a first packet names a segment size of 536 to 9216 bytes", &[("--mss", 1)]),
    doubt(
        "time",
        "the time at which the packet comes is not known",
        &[
            ("--datestart", 1),
            ("--datestop", 1),
            ("--timestart", 1),
            ("--timestop", 1),
            ("--monthdays", 1),
            ("--weekdays", 1),
            ("--contiguous", 0),
            ("--kerneltz", 0),
            ("--utc", 0),
            ("--localtz", 0),
        ],
    ),
    assumed("tos", "the sender sets no type of service", &[("--tos", 1)]),
    assumed("ttl", "this node's own packets have TTL 64", &[("--ttl-eq", 1), ("--ttl-lt", 1), ("--ttl-gt", 1)]),
    doubt("u32", "it looks at bytes of the packet that are not known", &[("--u32", 1)]),
    exact("udp", PORTS),
    exact("udplite", PORTS),
];

const MARKS: &[(&str, u8)] =
    &[("--set-xmark", 1), ("--set-mark", 1), ("--and-mark", 1), ("--or-mark", 1), ("--xor-mark", 1)];
const RANDOM: &[(&str, u8)] = &[("--random", 0), ("--random-fully", 0), ("--to-ports", 1)];
const SECURITY: &[(&str, u8)] = &[("--selctx", 1), ("--save", 0), ("--restore", 0)];
const PREFIXES: &[(&str, u8)] = &[("--src-pfx", 1), ("--dst-pfx", 1)];
const TO_USER_SPACE: &str = "a program in user space decides";

/// All targets.
pub const TARGETS: &[Extension] = &[
    exact("ACCEPT", &[]),
    exact("DROP", &[]),
    exact("RETURN", &[]),
    doubt("QUEUE", TO_USER_SPACE, &[]),
    exact("AUDIT", &[("--type", 1)]),
    exact("CHECKSUM", &[("--checksum-fill", 0)]),
    exact("CLASSIFY", &[("--set-class", 1)]),
    doubt(
        "CLUSTERIP",
        "which node answers for the address is not known",
        &[
            ("--new", 0),
            ("--hashmode", 1),
            ("--clustermac", 1),
            ("--total-nodes", 1),
            ("--local-node", 1),
            ("--hash-init", 1),
        ],
    ),
    exact(
        "CONNMARK",
        &[
            ("--set-xmark", 1),
            ("--set-mark", 1),
            ("--and-mark", 1),
            ("--or-mark", 1),
            ("--xor-mark", 1),
            ("--save-mark", 0),
            ("--restore-mark", 0),
            ("--nfmask", 1),
            ("--ctmask", 1),
            ("--mask", 1),
            ("--left-shift-mark", 1),
            ("--right-shift-mark", 1),
        ],
    ),
    exact("CONNSECMARK", SECURITY),
    exact(
        "CT",
        &[
            ("--notrack", 0),
            ("--helper", 1),
            ("--ctevents", 1),
            ("--expevents", 1),
            ("--zone", 1),
            ("--zone-orig", 1),
            ("--zone-reply", 1),
            ("--timeout", 1),
        ],
    ),
    exact("DNAT", &[("--to-destination", 1), ("--random", 0), ("--persistent", 0)]),
    doubt("DNPT", "prefixes that are translated without connections are not followed", PREFIXES),
    exact("DSCP", &[("--set-dscp", 1), ("--set-dscp-class", 1)]),
    exact("ECN", &[("--ecn-tcp-remove", 0), ("--ecn-tcp-cwr", 1), ("--ecn-tcp-ece", 1), ("--ecn-ip-ect", 1)]),
    exact("HL", &[("--hl-set", 1), ("--hl-dec", 1), ("--hl-inc", 1)]),
    exact(
        "HMARK",
        &[
            ("--hmark-tuple", 1),
            ("--hmark-mod", 1),
            ("--hmark-offset", 1),
            ("--hmark-src-prefix", 1),
            ("--hmark-dst-prefix", 1),
            ("--hmark-sport-mask", 1),
            ("--hmark-dport-mask", 1),
            ("--hmark-spi-mask", 1),
            ("--hmark-sport", 1),
            ("--hmark-dport", 1),
            ("--hmark-spi", 1),
            ("--hmark-proto-mask", 1),
            ("--hmark-rnd", 1),
        ],
    ),
    exact("IDLETIMER", &[("--timeout", 1), ("--label", 1), ("--alarm", 0), ("--send_nl_msg", 0)]),
    exact("LED", &[("--led-trigger-id", 1), ("--led-delay", 1), ("--led-always-blink", 0)]),
    exact(
        "LOG",
        &[
            ("--log-level", 1),
            ("--log-prefix", 1),
            ("--log-tcp-sequence", 0),
            ("--log-tcp-options", 0),
            ("--log-ip-options", 0),
            ("--log-uid", 0),
            ("--log-macdecode", 0),
        ],
    ),
    exact("MARK", MARKS),
    exact("MASQUERADE", RANDOM),
    exact("NETMAP", &[("--to", 1)]),
    exact(
        "NFLOG",
        &[
            ("--nflog-group", 1),
            ("--nflog-prefix", 1),
            ("--nflog-range", 1),
            ("--nflog-size", 1),
            ("--nflog-threshold", 1),
        ],
    ),
    doubt(
        "NFQUEUE",
        TO_USER_SPACE,
        &[("--queue-num", 1), ("--queue-balance", 1), ("--queue-bypass", 0), ("--queue-cpu-fanout", 0)],
    ),
    exact("NOTRACK", &[]),
    exact("RATEEST", &[("--rateest-name", 1), ("--rateest-interval", 1), ("--rateest-ewmalog", 1)]),
    exact("REDIRECT", RANDOM),
    exact("REJECT", &[("--reject-with", 1)]),
    exact("SECMARK", SECURITY),
    exact(
        "SET",
        &[
            ("--add-set", 2),
            ("--del-set", 2),
            ("--map-set", 2),
            ("--exist", 0),
            ("--timeout", 1),
            ("--map-mark", 0),
            ("--map-prio", 0),
            ("--map-queue", 0),
        ],
    ),
    exact("SNAT", &[("--to-source", 1), ("--random", 0), ("--random-fully", 0), ("--persistent", 0)]),
    doubt("SNPT", "prefixes that are translated without connections are not followed", PREFIXES),
    doubt(
        "SYNPROXY",
        "the kernel answers in the destination's place",
        &[("--mss", 1), ("--wscale", 1), ("--sack-perm", 0), ("--timestamp", 0), ("--ecn", 0)],
    ),
    exact("TCPMSS", &[("--set-mss", 1), ("--clamp-mss-to-pmtu", 0)]),
    exact("TCPOPTSTRIP", &[("--strip-options", 1)]),
    exact("TEE", &[("--gateway", 1), ("--oif", 1)]),
    exact("TOS", &[("--set-tos", 1), ("--and-tos", 1), ("--or-tos", 1), ("--xor-tos", 1)]),
    doubt(
        "TPROXY",
        "whether a socket of this node takes the packet is not read",
        &[("--on-port", 1), ("--on-ip", 1), ("--tproxy-mark", 1)],
    ),
    exact("TRACE", &[]),
    exact("TTL", &[("--ttl-set", 1), ("--ttl-dec", 1), ("--ttl-inc", 1)]),
    exact("ULOG", &[("--ulog-nlgroup", 1), ("--ulog-prefix", 1), ("--ulog-cprange", 1), ("--ulog-qthreshold", 1)]),
];
