//! Decodes the input as a netlink datagram: framing, acknowledgements, ends of dumps.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxier_inspect::fuzzing;

fuzz_target!(|input: &[u8]| fuzzing::netlink(input));
