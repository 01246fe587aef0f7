//! Decodes the input as a datagram of nf_tables and walks a packet through the result.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxier_inspect::fuzzing;

fuzz_target!(|input: &[u8]| fuzzing::nf_tables(input));
