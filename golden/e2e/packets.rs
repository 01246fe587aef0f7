//! Services with real packets: the proxy's rules in a cluster of network namespaces, in every mode and both IP families.
//!
//! Each test is a function that takes a cluster; the macros run it once per flavour of iptables (`packets::nft::TEST`,
//! `packets::legacy::TEST`), in nftables mode (`packets::nftables::TEST`) and in IPVS mode (`packets::in_ipvs_mode::TEST`).
//! `FLAVOUR=nft|legacy|both` chooses the flavours; `KUBE_PROXY=PATH` tests another binary.

mod affinity;
mod broken;
mod changes;
mod cluster_ip;
mod ended;
mod flows;
mod hashing;
mod ipvs;
mod load_balancer;
mod localhost;
mod metrics;
mod node_port;
mod policy;
mod protocols;
mod refused;
mod repair;
mod restart;
mod table;
mod top;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use golden::cluster::{Answer, Cluster};
use golden::flavour::Flavour;

/// How soon a change of the objects must show in the traffic, on a busy machine: long before conntrack forgets a flow.
const PROMPT: Duration = Duration::from_secs(15);
/// How long things may take that have no promise of speed, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A test in nftables mode for each function that takes a cluster.
macro_rules! in_nftables_mode {
    ($($group:ident: $($test:ident),+;)+) => {
        mod nftables {
            $($(#[test] fn $test() { super::run_in_mode("nftables", super::$group::$test); })+)+
        }
    };
}

/// A test in IPVS mode for each function that takes a cluster; `make test-ipvs` runs them.
macro_rules! in_ipvs_mode {
    ($($group:ident: $($test:ident),+;)+) => {
        mod in_ipvs_mode {
            $($(
                #[test]
                #[ignore = "needs a kernel with IPVS: make test-ipvs"]
                fn $test() { super::run_in_mode("ipvs", super::$group::$test); }
            )+)+
        }
    };
}

/// A test per flavour for each function that takes one.
macro_rules! in_both_flavours {
    ($($group:ident: $($test:ident),+;)+) => {
        mod nft {
            $($(#[test] fn $test() { super::run(golden::flavour::Flavour::Nft, super::$group::$test); })+)+
        }
        mod legacy {
            $($(#[test] fn $test() { super::run(golden::flavour::Flavour::Legacy, super::$group::$test); })+)+
        }
    };
}

in_both_flavours! {
    cluster_ip: cluster_ip_from_a_pod_keeps_the_source, cluster_ip_from_the_host,
        cluster_ip_from_outside_is_masqueraded,
        connections_spread_over_the_endpoints, a_pod_reaches_itself_through_its_service;
    node_port: node_port_on_every_node_address, node_port_on_localhost_is_ipv4_only,
        node_port_addresses_restrict_node_ports;
    load_balancer: load_balancer_and_external_ip_from_outside, source_ranges_drop_other_clients;
    affinity: client_ip_affinity_of_a_cluster_ip, client_ip_affinity_of_a_node_port;
    policy: external_local_keeps_the_client_and_stays_on_the_node, external_local_does_not_bind_pods,
        internal_local_stays_on_the_node, external_local_without_local_endpoints_drops,
        internal_local_without_local_endpoints_drops, no_endpoints_refuse_at_once;
    protocols: udp_through_every_entrance, udp_node_port_on_localhost, udp_refused_and_dropped,
        udp_flow_leaves_a_gone_endpoint,
        sctp_rules_load_and_translate;
    flows: flows_come_back_with_the_endpoints, earlier_flows_reach_a_new_service, flows_leave_a_deleted_service,
        flows_leave_an_address_removed_from_their_service, a_start_finds_stale_flows, flows_of_terminating_endpoints_stay;
    ended: a_hung_connection_reconnects, connections_of_others_and_of_endpoints_that_are_left_stay,
        connections_end_once_an_endpoint_can_reset_them, a_start_ends_connections_to_endpoints_that_went_meanwhile,
        udp_flows_of_terminating_endpoints_stay_if_asked,
        connections_of_a_deleted_service_stay_until_it_is_made_anew_without_their_endpoint,
        sctp_associations_leave_an_endpoint_that_is_gone;
    changes: readiness_moves_traffic, terminating_endpoints_are_the_last_resort, a_deleted_service_leaves_nothing,
        a_changed_service_keeps_its_neighbours_connected;
    repair: an_emptied_chain_comes_back, a_removed_rule_comes_back, a_removed_translation_comes_back,
        a_removed_jump_comes_back, a_flushed_nat_table_comes_back, a_flushed_filter_table_comes_back;
    restart: restart_after_sigkill_does_not_affect_connections, changes_during_downtime_are_applied_after_restart;
    metrics: connections_are_counted_at_every_address, counts_are_exact_over_changes_and_restarts,
        counts_are_exact_over_a_thousand_changes,
        service_ports_beyond_the_limit_are_counted_as_omitted, services_that_a_selector_selects_are_counted,
        nothing_is_counted_or_shown_unless_asked_for;
    refused: iptables_rules_count_refused_packets;
    top: top_shows_the_connections_that_were_made, top_fails_with_a_status_that_tells_why;
    broken: rejected_rules_are_left_out;
    hashing: iptables_mode_says_that_it_does_not_hash;
}

// What is not here looks at iptables' rules, or is otherwise in the real one's nftables mode: no node ports on localhost.
in_nftables_mode! {
    localhost: localhost_node_ports_are_served_in_both_families,
        localhost_node_ports_are_served_in_the_families_that_name_localhost,
        localhost_node_ports_follow_local_endpoints,
        localhost_node_ports_without_a_proxy_are_rejected_and_counted;
    cluster_ip: cluster_ip_from_a_pod_keeps_the_source, cluster_ip_from_the_host,
        cluster_ip_from_outside_is_masqueraded,
        connections_spread_over_the_endpoints, a_pod_reaches_itself_through_its_service;
    node_port: node_port_addresses_restrict_node_ports;
    load_balancer: load_balancer_and_external_ip_from_outside, source_ranges_drop_other_clients;
    affinity: client_ip_affinity_of_a_cluster_ip, client_ip_affinity_of_a_node_port,
        affinity_of_no_seconds_never_ends;
    policy: external_local_keeps_the_client_and_stays_on_the_node, external_local_does_not_bind_pods,
        internal_local_stays_on_the_node, external_local_without_local_endpoints_drops,
        internal_local_without_local_endpoints_drops, no_endpoints_refuse_at_once;
    protocols: udp_through_every_entrance, udp_refused_and_dropped, udp_flow_leaves_a_gone_endpoint;
    flows: flows_come_back_with_the_endpoints, earlier_flows_reach_a_new_service, flows_leave_a_deleted_service,
        flows_leave_an_address_removed_from_their_service, a_start_finds_stale_flows, flows_of_terminating_endpoints_stay;
    ended: a_hung_connection_reconnects, connections_of_others_and_of_endpoints_that_are_left_stay,
        connections_end_once_an_endpoint_can_reset_them, a_start_ends_connections_to_endpoints_that_went_meanwhile,
        udp_flows_of_terminating_endpoints_stay_if_asked,
        connections_of_a_deleted_service_stay_until_it_is_made_anew_without_their_endpoint,
        sctp_associations_leave_an_endpoint_that_is_gone;
    changes: readiness_moves_traffic, terminating_endpoints_are_the_last_resort;
    table: endpoint_changes_do_not_affect_other_connections, a_node_moves_between_iptables_and_nftables,
        restarted_process_does_not_affect_connections, damaged_table_is_repaired;
    repair: a_damaged_table_comes_back;
    restart: changes_during_downtime_are_applied_after_restart;
    metrics: connections_are_counted_at_every_address, counts_are_exact_over_changes_and_restarts,
        counts_are_exact_over_a_thousand_changes,
        service_ports_beyond_the_limit_are_counted_as_omitted, services_that_a_selector_selects_are_counted,
        nothing_is_counted_or_shown_unless_asked_for,
        metrics_are_switched_on_and_off_unnoticed;
    refused: elements_count_refused_packets;
    top: top_shows_the_connections_that_service_metrics_count, top_says_that_endpoints_are_not_counted,
        top_says_what_to_set_where_nothing_counts;
    broken: invalid_object_does_not_affect_other_services, refused_objects_are_named_and_left_out;
    hashing: flows_go_to_the_computed_endpoint_on_every_node, clients_keep_their_endpoint_at_every_address,
        trace_follows_the_hash_of_a_known_client_only;
}

// What is not here looks at iptables' rules, or is otherwise in IPVS mode: node ports on localhost, drops for want of local
// endpoints, affinity that all entrances share.
in_ipvs_mode! {
    cluster_ip: cluster_ip_from_a_pod_keeps_the_source, cluster_ip_from_the_host,
        cluster_ip_from_outside_is_masqueraded,
        connections_spread_over_the_endpoints, a_pod_reaches_itself_through_its_service;
    node_port: node_port_on_every_node_address, node_port_addresses_restrict_node_ports;
    load_balancer: load_balancer_and_external_ip_from_outside, source_ranges_drop_other_clients;
    affinity: client_ip_affinity_of_a_cluster_ip;
    policy: external_local_keeps_the_client_and_stays_on_the_node, internal_local_stays_on_the_node,
        no_endpoints_refuse_at_once;
    protocols: udp_flow_leaves_a_gone_endpoint;
    changes: readiness_moves_traffic;
    metrics: connections_are_counted_at_every_address, counts_are_exact_over_changes_and_restarts,
        counts_are_exact_over_a_thousand_changes, services_that_a_selector_selects_are_counted,
        nothing_is_counted_or_shown_unless_asked_for;
    refused: sets_count_refused_packets;
    top: top_shows_the_connections_that_were_made;
    ended: a_hung_connection_reconnects, connections_of_others_and_of_endpoints_that_are_left_stay,
        connections_end_once_an_endpoint_can_reset_them, a_start_ends_connections_to_endpoints_that_went_meanwhile,
        udp_flows_of_terminating_endpoints_stay_if_asked,
        connections_of_a_deleted_service_stay_until_it_is_made_anew_without_their_endpoint;
    ipvs: a_connection_outlives_its_endpoint, a_connection_outlives_its_service, a_connection_outlives_the_proxy,
        round_robin_is_even, source_hashing_keeps_clients, a_node_moves_between_modes,
        flushed_virtual_servers_and_rules_are_restored, servers_of_others_stay,
        local_policies_bind_pods_and_fall_back, addresses_of_services_have_no_other_ports;
    hashing: virtual_servers_hash_and_nodes_agree;
}

fn run_in_mode(mode: &str, test: fn(Cluster)) {
    test(Cluster::new(Flavour::Nft, &binary()).configured("mode", mode.into()));
}

fn binary() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_kube-proxy"));
    std::env::var_os("KUBE_PROXY").map_or_else(built, PathBuf::from)
}

fn run(flavour: Flavour, test: fn(Cluster)) {
    let wanted = std::env::var("FLAVOUR").unwrap_or_else(|_| "both".to_owned());
    assert!(["nft", "legacy", "both"].contains(&wanted.as_str()), "FLAVOUR={wanted}: nft, legacy or both");
    if wanted == "both" || wanted == flavour.to_string() {
        test(Cluster::new(flavour, &binary()));
    }
}

/// The names of the pods that answered.
fn pods(answers: &[Answer]) -> BTreeSet<&str> {
    answers.iter().map(|answer| answer.pod.as_str()).collect()
}
