//! Decodes the input as a watch in protobuf. The first byte chooses the kind.

#![no_main]

use kube_proxy::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some((kind, bytes)) = input.split_first() {
        fuzzing::watch(false, fuzzing::Kind::ALL[usize::from(*kind) % fuzzing::Kind::ALL.len()], bytes);
    }
});
