//! Decodes the input as a datagram of rtnetlink: devices, addresses, neighbours, notifications.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxier_inspect::fuzzing;

fuzz_target!(|input: &[u8]| fuzzing::links(input));
