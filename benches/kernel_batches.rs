//! The smallest batches of nf_tables, sent beside a proxy's rules: what the kernel takes for a change at the least.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::NftRules;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::time::{ClockId, clock_gettime};

const TURNS: u32 = 50;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_ECHO: u16 = 8;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10 << 8;
const NEWTABLE: u16 = NFTABLES;
const NEWCHAIN: u16 = NFTABLES | 3;
const NEWRULE: u16 = NFTABLES | 6;
const NESTED: u16 = 0x8000;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("short");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn name(kind: u16, name: &str) -> Vec<u8> {
    attribute(kind, &[name.as_bytes(), &[0]].concat())
}

fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = attributes.concat();
    let length = u32::try_from(20 + body.len()).expect("short");
    let [high, low] = resource.to_be_bytes();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend([kind.to_ne_bytes(), (NLM_F_REQUEST | flags).to_ne_bytes()].concat());
    bytes.extend([0; 8]);
    bytes.extend([family, 0, high, low]);
    bytes.extend(body);
    bytes
}

fn ipv4(kind: u16, flags: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    message(kind, flags, 2, 0, attributes)
}

fn expression(name_of: &str, data: &[u8]) -> Vec<u8> {
    let expression = [name(1, name_of), attribute(2 | NESTED, data)].concat();
    attribute(4 | NESTED, &attribute(1 | NESTED, &expression))
}

fn jump(chain: &str) -> Vec<u8> {
    let verdict = [attribute(1, &(-3_i32).to_be_bytes()), name(2, chain)].concat();
    let data = [attribute(1, &[0; 4]), attribute(2 | NESTED, &attribute(2 | NESTED, &verdict))].concat();
    expression("immediate", &data)
}

fn comment() -> Vec<u8> {
    let mut text = [0; 256];
    text[0] = b'x';
    expression("match", &[name(1, "comment"), attribute(2, &[0; 4]), attribute(3, &text)].concat())
}

/// CPU time of this thread, and the time.
fn now() -> (Duration, Instant) {
    (clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into(), Instant::now())
}

/// Sends a batch. Returns the CPU time and the time that the kernel took.
fn batch(socket: &OwnedFd, messages: &[Vec<u8>]) -> (Duration, Duration) {
    let mut bytes = message(NFNL_MSG_BATCH_BEGIN, 0, 0, NFTABLES >> 8, &[]);
    bytes.extend(messages.concat());
    bytes.extend(message(NFNL_MSG_BATCH_END, NLM_F_ACK, 0, NFTABLES >> 8, &[]));
    let (cpu, started) = now();
    send(socket.as_raw_fd(), &bytes, MsgFlags::empty()).expect("sent");
    let took = (now().0 - cpu, started.elapsed());
    let mut answer = vec![0; 1 << 16];
    while recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).is_ok() {
        // NLMSG_ERROR with its number, which is 0 for an acknowledgement.
        assert!(answer[4..6] != 2_u16.to_ne_bytes() || answer[16..20] == [0; 4], "refused: {:?}", &answer[16..20]);
    }
    took
}

/// The CPU time and the time of batches, each sorted.
pub fn measure() -> Vec<(&'static str, Vec<Duration>, Vec<Duration>)> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkNetFilter);
    let socket = socket.expect("a socket");
    setsockopt(&socket, sockopt::RcvBuf, &(1 << 20)).expect("a buffer");
    let chain = |table: &str, chain: &str| ipv4(NEWCHAIN, NLM_F_CREATE, &[name(1, table), name(3, chain)]);
    let table = ipv4(NEWTABLE, NLM_F_CREATE, &[name(1, "floor")]);
    let places = [("floor", "FLOOR"), ("floor", "TO"), ("nat", "FLOOR"), ("nat", "TO")];
    batch(&socket, &[vec![table], places.map(|(of, name)| chain(of, name)).to_vec()].concat());
    let rule = |table: &str, chain: &str, flags: u16, more: &[Vec<u8>]| {
        let attributes = [&[name(1, table), name(2, chain)], more].concat();
        vec![ipv4(NEWRULE, NLM_F_CREATE | flags, &attributes)]
    };
    let rules = NftRules::new(IpFamily::V4).chain("nat", "KUBE-SERVICES").expect("readable");
    let middle = attribute(6, &rules[rules.len() / 2].handle.to_be_bytes());
    let end = |table: &str, more: &[Vec<u8>]| rule(table, "FLOOR", NLM_F_APPEND, more);
    let services = |flags, more: &[Vec<u8>]| rule("nat", "KUBE-SERVICES", flags, more);
    let batches = [
        ("nothing", vec![]),
        ("a rule without expressions, another table", end("floor", &[])),
        ("a rule with a jump, another table", end("floor", &[jump("TO")])),
        ("a rule without expressions, table nat", end("nat", &[])),
        ("a rule with a comment, table nat", end("nat", &[comment()])),
        ("a rule with a jump, table nat", end("nat", &[jump("TO")])),
        ("a rule without expressions inside KUBE-SERVICES", services(0, std::slice::from_ref(&middle))),
        ("a rule with a jump inside KUBE-SERVICES", services(0, &[middle.clone(), jump("TO")])),
        ("the same, echoed", services(NLM_F_ECHO, &[middle, jump("TO")])),
    ];
    let measured = batches.into_iter().map(|(what, messages)| {
        let times: Vec<_> = (0..TURNS).map(|_| batch(&socket, &messages)).collect();
        let (mut cpu, mut times): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        cpu.sort();
        times.sort();
        (what, cpu, times)
    });
    measured.collect()
}
