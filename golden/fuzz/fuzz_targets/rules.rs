//! Reads the input as iptables-save's text and walks a packet through it. The first byte chooses the family.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxier_inspect::fuzzing;

fuzz_target!(|input: &[u8]| fuzzing::rules(input));
