//! End-to-end tests of the `kube-proxy` binary, as root, in network namespaces of their own.
//!
//! `cargo test --test e2e` runs all, `cargo test --test e2e packets::` one group, a longer part of a name fewer.
//! Tests of IPVS mode are ignored with that reason; `make test-ipvs` runs them in a kernel that has IPVS.

mod config;
mod credentials;
mod demo;
mod deploy;
mod inspect;
mod ipvs_inspect;
mod lifecycle;
mod localhost;
mod migration;
mod objects;
mod packets;
mod preflight;
mod trouble;
mod watch;
