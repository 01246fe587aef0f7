//! Parses the input as the output of an iptables program.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxier_inspect::fuzzing;

fuzz_target!(|input: &[u8]| fuzzing::tool(input));
