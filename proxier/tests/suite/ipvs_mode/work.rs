//! Work is in proportion to the change, not to the cluster.

use netfilter::kernel::Operation;
use serde_json::json;

use super::world::{World, service, service_with, slice};

const SERVICES: u8 = 200;

fn name(number: u8) -> String {
    format!("svc-{number}")
}

fn world() -> World {
    let mut world = World::new();
    for number in 0..SERVICES {
        world.apply(service(&name(number), &format!("10.96.0.{number}")));
        world.apply(slice(&name(number), &["10.244.1.5", "10.244.1.6"]));
    }
    world.sync();
    settle(&world);
    world
}

/// Resets the counts of writes and reads. Returns the number of reads before.
fn settle(world: &World) -> usize {
    let _ =
        (world.fake.servers.take_operations(), world.fake.sets.take_operations(), world.fake.links.take_operations());
    world.fake.servers.listings() + world.fake.sets.listings() + world.fake.links.listings()
}

#[test]
fn an_endpoint_more_is_one_operation() {
    let mut world = world();
    let (asked, tables) = (settle(&world), world.fake.tables.restores());
    world.apply(slice(&name(7), &["10.244.1.5", "10.244.1.6", "10.244.2.7"]));
    let stats = world.sync();
    assert!(!stats.full);
    let operations = world.fake.servers.take_operations();
    assert!(matches!(operations[..], [Operation::AddReal(..)]), "{operations:?}");
    assert_eq!((settle(&world), world.fake.tables.restores()), (asked, tables), "nothing was asked or written besides");
}

#[test]
fn an_endpoint_less_is_a_question_and_an_operation() {
    let mut world = world();
    let asked = settle(&world);
    world.apply(slice(&name(7), &["10.244.1.5"]));
    world.sync();
    let operations = world.fake.servers.take_operations();
    assert!(matches!(operations[..], [Operation::DeleteReal(..)]), "{operations:?}");
    assert_eq!(settle(&world), asked + 1, "only its connections were counted");
}

#[test]
fn a_service_more_touches_no_other() {
    let mut world = world();
    let tables = world.fake.tables.restores();
    world.apply(service("new", "10.97.0.1"));
    world.apply(slice("new", &["10.244.1.5"]));
    world.sync();
    assert_eq!(world.fake.servers.take_operations().len(), 2);
    assert_eq!(world.fake.sets.take_operations().len(), 2, "its cluster IP, in two sets");
    assert_eq!(world.fake.links.take_operations().len(), 1);
    assert_eq!(world.fake.tables.restores(), tables, "rules ask sets");
    let node_port =
        json!({ "type": "NodePort", "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }] });
    world.apply(service_with("first", "10.97.0.2", &node_port));
    world.sync();
    assert_eq!(world.fake.tables.restores(), tables + 1, "the first entry of a set makes its rule");
}

#[test]
fn nothing_is_written_where_nothing_differs() {
    let mut world = world();
    let tables = world.fake.tables.restores();
    world.restart();
    assert!(world.sync().full);
    assert!(world.fake.servers.take_operations().is_empty(), "a restart on a healthy node");
    let sets = world.fake.sets.take_operations();
    assert!(sets.iter().all(|operation| matches!(operation, netfilter::kernel::SetOperation::Create(_))), "{sets:?}");
    assert!(world.fake.links.take_operations().is_empty());
    assert_eq!(world.fake.tables.restores(), tables);
}
