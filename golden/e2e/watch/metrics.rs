//! Metrics compared with the changes that were made.

use golden::load::{Account, change};
use golden::node::sum;

use super::World;

#[test]
fn after_some_hundred_changes_the_metrics_say_exactly_what_happened() {
    const SERVICES: u32 = 100;
    const CHANGES: u32 = 300;
    let mut world = World::new();
    world.api.load_synthetic(SERVICES, 3);
    world.start();
    world.settled();
    world.node.until("all of the load is there", || world.node.rules().contains("scale/svc-00099:http"));
    let account = Account::open(world.node.metrics());
    for number in 0..CHANGES {
        change(&world.api, number * 7 % SERVICES);
        if number == CHANGES / 2 {
            // Not all in one sync.
            world.node.until("half of them are done", || account.is_done(&world.node.metrics(), number + 1));
        }
    }
    world.node.until("all of them are done", || account.is_done(&world.node.metrics(), CHANGES));
    let after = world.node.metrics();
    let differences = account.differences(&after, CHANGES);
    assert!(differences.is_empty(), "{differences:#?}\n{after}");
    assert!(account.growth(&after, "kubeproxy_sync_proxy_rules_duration_seconds_count") >= 2.0);

    // Three turns each: every last endpoint is out.
    let rules = world.node.rules();
    assert_eq!(rules.matches("--to-destination 10.128.").count(), 2 * SERVICES as usize);
    for table in ["nat", "filter"] {
        let head = format!("*{table}\n");
        let start = rules.match_indices(&head).map(|(at, _)| &rules[at..]);
        let of_table = start.flat_map(|rules| rules.lines().take_while(|line| *line != "COMMIT"));
        // Not the jumps from built-in chains.
        let ours = of_table.filter(|line| line.starts_with("-A KUBE-"));
        let reported =
            sum(&after, &format!("kubeproxy_sync_proxy_rules_iptables_total{{ip_family=\"IPv4\",table=\"{table}\""))
                + sum(
                    &after,
                    &format!("kubeproxy_sync_proxy_rules_iptables_total{{ip_family=\"IPv6\",table=\"{table}\""),
                );
        assert_eq!(reported.to_string(), ours.count().to_string(), "{table}");
    }
}
