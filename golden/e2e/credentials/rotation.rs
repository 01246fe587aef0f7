//! Credential files that are replaced while the proxy runs.

use std::time::Duration;

use golden::cluster::eventually;
use golden::pki::{Certified, Profile, replace};
use golden::sample::slice;
use golden::tls::{TlsFront, server_context};

use super::{HTTP1, WEB, World};

const CA: &str = "certificate-authority: ca.crt";

/// A proxy running with the client certificate `one`, its TLS terminator, and the certificate `two`.
fn running_as_one() -> (World, TlsFront, Certified) {
    let mut world = World::new();
    let front = world.front(Some(&world.authority));
    let client = |name| Certified::new(&Profile::leaf(name), Some(&world.authority));
    let (one, two) = (client("one"), client("two"));
    one.write(world.node.dir(), "client");
    world.start(&front.url(), CA, "client-certificate: client.crt, client-key: client.key");
    world.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    (world, front, two)
}

#[test]
fn a_new_client_certificate_is_used_within_a_minute_though_nothing_breaks() {
    let (world, front, two) = running_as_one();
    assert!(front.clients().iter().all(|name| name == "one"), "{:?}", front.clients());
    two.write(world.node.dir(), "client");
    world.node.until("connections are made with the new certificate", || front.clients().contains(&"two".to_owned()));
    world.node.until_logged(&["client.crt", "changed"]);
    world.works("10.244.2.6");
}

#[test]
fn a_client_certificate_without_its_key_leaves_the_last_pair_in_use() {
    let (world, front, two) = running_as_one();
    replace(&world.node.dir().join("client.crt"), &two.pem());
    front.drop_connections();
    world.node.until_logged(&[
        "client.key does not belong to the certificate",
        "client.crt",
        "using the last valid one",
    ]);
    world.works("10.244.2.6");
    replace(&world.node.dir().join("client.key"), &two.key_pem());
    front.drop_connections();
    world.node.until("connections are made with the new pair", || front.clients().contains(&"two".to_owned()));
    world.works("10.244.2.7");
}

#[test]
fn a_server_of_a_new_authority_is_accepted_when_the_file_has_it() {
    let mut world = World::new();
    let front = world.front(None);
    world.start(&front.url(), CA, "");
    world.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    let new = Certified::new(&Profile::authority("new-ca"), None);
    front.set_context(server_context(&Certified::new(&Profile::server("server"), Some(&new)), None, HTTP1));
    front.drop_connections();
    world.node.until_logged(&["authority that is not in", "ca.crt", "CN=new-ca"]);
    replace(&world.node.dir().join("ca.crt"), &format!("{}{}", world.authority.pem(), new.pem()));
    world.api.apply(slice("web-1", "web", &["10.244.2.6"]));
    // Read again after 30 s at the latest, and retried after another 30 s.
    let leads = || world.node.endpoints(WEB).contains("10.244.2.6:8080");
    eventually("the change arrives", Duration::from_secs(75), leads);
}
