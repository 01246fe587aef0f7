//! The targets of iptables, by name: the standard ones first.

use super::{Extension, doubt, exact};

const MARKS: &[(&str, u8)] =
    &[("--set-xmark", 1), ("--set-mark", 1), ("--and-mark", 1), ("--or-mark", 1), ("--xor-mark", 1)];
const RANDOM: &[(&str, u8)] = &[("--random", 0), ("--random-fully", 0), ("--to-ports", 1)];
const SECURITY: &[(&str, u8)] = &[("--selctx", 1), ("--save", 0), ("--restore", 0)];
const PREFIXES: &[(&str, u8)] = &[("--src-pfx", 1), ("--dst-pfx", 1)];
const TO_USER_SPACE: &str = "a program in user space decides";

/// All targets.
pub(super) const TARGETS: &[Extension] = &[
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
