//! Parses the input as a configuration file and writes it again.

#![no_main]

use kube_proxy::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| fuzzing::configuration(input));
