//! Reads the input as a file of `/proc` or `/sys`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    proxier_inspect::fuzzing::proc(input);
    kube_proxy::fuzzing::process(input);
});
