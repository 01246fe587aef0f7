//! `dump`, `trace` and `diagnose` against the real kernel: each failure provoked in a namespace, and named.
//!
//! In: the `kube-proxy` binary and root. Out: whether the commands tell what is so. The rules are the recorded ones of
//! the real kube-proxy, or our own proxy's.

mod api;
mod diagnose;
mod dump;
mod focus;
mod hairpin;
mod nftables;
mod node;
mod trace_nftables;
