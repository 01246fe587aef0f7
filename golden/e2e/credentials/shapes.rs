//! Valid and invalid forms of certificates, keys and server addresses.

use golden::pki::{Certified, Digest, Key, Profile, Usage, replace};
use golden::tls::TlsFront;
use nix::sys::signal::Signal;
use openssl::nid::Nid;

use super::World;

const CA: &str = "certificate-authority: ca.crt";
const CLIENT: &str = "client-certificate: client.crt, client-key: client.key";

impl World {
    /// Starts the proxy and waits until it has requested Services.
    #[track_caller]
    fn reaches(&mut self, what: &str, server: &str, cluster: &str, user: &str) {
        self.api.clear_requests();
        self.start(server, cluster, user);
        let asked = || self.api.requests().iter().any(|request| request.path.ends_with("/api/v1/services"));
        self.node.until(&format!("{what}: Services are asked for"), asked);
        self.node.end(Signal::SIGKILL);
    }

    /// Starts the proxy and waits until it has logged why it does not connect.
    #[track_caller]
    fn fails(&mut self, server: &str, cluster: &str, user: &str, parts: &[&str]) {
        self.start(server, cluster, user);
        self.node.until_logged(parts);
        self.node.end(Signal::SIGKILL);
    }
}

fn client(profile: &Profile<'_>, world: &World) -> Certified {
    let client = Certified::new(profile, Some(&world.authority));
    client.write(world.node.dir(), "client");
    client
}

#[test]
fn client_certificates_and_keys_of_every_kind_are_accepted() {
    let mut world = World::new();
    let front = world.front(Some(&world.authority));
    let leaf = Profile::leaf("client");
    for (what, profile) in [
        ("version 1", Profile { is_v1: true, ..leaf }),
        ("P-384", Profile { key: Key::Curve(Nid::SECP384R1), ..leaf }),
        ("P-521", Profile { key: Key::Curve(Nid::SECP521R1), ..leaf }),
        ("RSA 2048", Profile { key: Key::Rsa(2048), ..leaf }),
        ("RSA 8192", Profile { key: Key::Rsa(8192), ..leaf }),
        ("Ed25519", Profile { key: Key::Ed25519, ..leaf }),
    ] {
        client(&profile, &world);
        world.reaches(what, &front.url(), CA, CLIENT);
    }
    let (folder, rsa) = (world.node.dir().to_owned(), client(&Profile { key: Key::Rsa(2048), ..leaf }, &world));
    let pkcs1 = rsa.key.rsa().and_then(|key| key.private_key_to_pem()).expect("PEM");
    replace(&folder.join("client.key"), &String::from_utf8(pkcs1).expect("text"));
    world.reaches("PKCS#1", &front.url(), CA, CLIENT);
    let curve = client(&leaf, &world);
    let sec1 = curve.key.ec_key().and_then(|key| key.private_key_to_pem()).expect("PEM");
    let sec1 = format!(
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{}",
        String::from_utf8(sec1).expect("text")
    );
    replace(&folder.join("client.key"), &sec1);
    world.reaches("EC PARAMETERS before the key", &front.url(), CA, CLIENT);
    // The kubelet keeps its own this way.
    replace(&folder.join("both.pem"), &format!("{}{}", curve.pem(), curve.key_pem()).replace('\n', "\r\n"));
    world.reaches("both in one file", &front.url(), CA, "client-certificate: both.pem, client-key: both.pem");
    let encode = |text: String| openssl::base64::encode_block(text.as_bytes());
    let data =
        format!("client-certificate-data: {}, client-key-data: {}", encode(curve.pem()), encode(curve.key_pem()));
    let authority = format!("certificate-authority-data: {}", encode(world.authority.pem()));
    world.reaches("in the kubeconfig itself", &front.url(), &authority, &data);
    assert!(front.clients().iter().all(|name| name == "client"), "{:?}", front.clients());
}

#[test]
fn servers_and_authorities_of_every_kind_are_accepted() {
    let mut world = World::new();
    let ca = |world: &World, text: &str| replace(&world.node.dir().join("ca.crt"), text);
    let server = Profile::server("server");
    let own = Profile { is_ca: Some(true), ..server };
    for (what, profile) in [
        ("its own certificate, CA:FALSE", Profile { is_ca: Some(false), ..server }),
        ("its own certificate, CA:TRUE", own),
        ("its own certificate, for signing alone", Profile { usage: Some(Usage::SignOnly), ..own }),
    ] {
        let own = Certified::new(&profile, None);
        let front = world.front_as(&own, None);
        ca(&world, &own.pem());
        world.reaches(what, &front.url(), CA, "");
    }
    for (what, authority, profile) in [
        ("P-521", Profile { key: Key::Curve(Nid::SECP521R1), ..Profile::authority("p521") }, server),
        ("version 1", Profile { is_v1: true, ..Profile::authority("v1") }, server),
        ("RSA 1024", Profile { key: Key::Rsa(1024), ..Profile::authority("small") }, server),
        ("a server with CA:TRUE", Profile::authority("ca"), own),
        ("a server for servers", Profile::authority("ca"), Profile { usage: Some(Usage::Server), ..server }),
    ] {
        let authority = Certified::new(&authority, None);
        let front = world.front_as(&Certified::new(&profile, Some(&authority)), None);
        ca(&world, &authority.pem());
        world.reaches(what, &front.url(), CA, "");
    }
    let front = world.front(None);
    let broken = "# a comment\n-----BEGIN CERTIFICATE-----\nMIIBAAAA\n-----END CERTIFICATE-----\n";
    ca(&world, &format!("{broken}{}", world.authority.pem()).replace('\n', "\r\n"));
    world.reaches("a bundle with a broken certificate and CRLF", &front.url(), CA, "");
    let issued = Certified::new(&server, Some(&world.authority));
    let front = world.front_as(&issued, None);
    ca(&world, &issued.pem());
    world.reaches("the server's own certificate, not its authority's", &front.url(), CA, "");
}

#[test]
fn addresses_of_every_form_are_accepted() {
    let mut world = World::new();
    let front = world.front(None);
    let (url, plain) = (front.url(), world.api.url());
    let by_name = url.replace("127.0.0.1", "localhost");
    let insecure = "insecure-skip-tls-verify: true";
    world.reaches("without scheme", plain.trim_start_matches("http://"), "", "");
    world.reaches("without scheme, with an authority", url.trim_start_matches("https://"), CA, "");
    world.reaches("insecure", &by_name, insecure, "");
    world.reaches("insecure, with an authority", &by_name, &format!("{insecure}, {CA}"), "");
    world.reaches("another name in the certificate", &by_name, &format!("{CA}, tls-server-name: 127.0.0.1"), "");
    let listener = world.node.netns().enter(|| std::net::TcpListener::bind("[::1]:0").expect("a free port"));
    let on_v6 = Profile { addresses: &["::1".parse().expect("an address")], ..Profile::leaf("v6") };
    let server = Certified::new(&on_v6, Some(&world.authority));
    let context = golden::tls::server_context(&server, None, super::HTTP1);
    let backend = world.backend();
    let front = world.node.netns().enter(|| TlsFront::start(listener, context, backend));
    world.reaches("IPv6", &front.url(), CA, "");
}

#[test]
fn servers_that_go_refuses_are_refused_and_the_file_is_named() {
    let mut world = World::new();
    let server = Profile::server("server");
    let names = Profile { names: &["api.example", "kubernetes"], ..Profile::leaf("server") };
    for (profile, parts) in [
        (Profile { days: (-9, -2), ..server }, ["CN=server", "expired on", "GMT"].as_slice()),
        (Profile { days: (2, 9), ..server }, &["CN=server", "not valid before"]),
        (names, &["for api.example, kubernetes, not for 127.0.0.1"]),
        (Profile::leaf("127.0.0.1"), &["no subjectAltName"]),
        (Profile { usage: Some(Usage::Client), ..server }, &["CN=server", "purpose"]),
        (Profile { digest: Digest::Sha1, ..server }, &["too weak"]),
        (Profile { key: Key::Rsa(512), ..server }, &["https://127.0.0.1"]),
    ] {
        let front = world.front_as(&Certified::new(&profile, Some(&world.authority)), None);
        let url = front.url();
        let parts: Vec<&str> = parts.iter().copied().chain([&*url]).collect();
        world.fails(&url, CA, "", &parts);
    }
    let stranger = Certified::new(&Profile::authority("stranger"), None);
    let front = world.front_as(&Certified::new(&server, Some(&stranger)), None);
    world.fails(&front.url(), CA, "", &[&front.url(), "authority that is not in", "/ca.crt", "CN=stranger"]);
    let front = world.front(Some(&world.authority));
    world.fails(&front.url(), CA, "", &["refuses the connection without a client certificate"]);
    Certified::new(&Profile::leaf("client"), Some(&stranger)).write(world.node.dir(), "client");
    world.fails(&front.url(), CA, CLIENT, &["refuses the client certificate", "/client.crt"]);
}
