//! `dump`, `trace` and `diagnose` against the real kernel: each failure provoked in a namespace, and named.
//!
//! In: the `kube-proxy` binary and root. Out: whether the commands tell what is so. The rules are the recorded ones of
//! the real kube-proxy, or our own proxy's.

#[path = "inspect/api.rs"]
mod api;
#[path = "inspect/diagnose.rs"]
mod diagnose;
#[path = "inspect/dump.rs"]
mod dump;
#[path = "inspect/focus.rs"]
mod focus;
#[path = "inspect/hairpin.rs"]
mod hairpin;
#[path = "inspect/nftables.rs"]
mod nftables;
#[path = "inspect/node.rs"]
mod node;
#[path = "inspect/trace_nftables.rs"]
mod trace_nftables;
