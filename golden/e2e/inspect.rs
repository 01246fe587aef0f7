//! `dump`, `trace` and `diagnose` with the real kernel: each failure is provoked in a namespace and must be reported.
//!
//! Rules are recorded ones of kube-proxy, or made by our proxy. Requires root.

mod api;
mod certainty;
mod diagnose;
mod dump;
mod endpoints;
mod focus;
mod hairpin;
mod localhost;
mod native;
mod nftables;
mod node;
mod obstructed;
mod outages;
mod settings;
mod trace_nftables;
mod unsettled;
