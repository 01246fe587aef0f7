//! Reads the input as a kubeconfig.

#![no_main]

use kube_proxy::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| fuzzing::kubeconfig(input));
