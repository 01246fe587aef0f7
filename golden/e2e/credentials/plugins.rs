//! Exec plugins, which issue credentials.

use std::os::unix::fs::PermissionsExt;

use golden::apiserver::End;
use golden::pki::{Certified, Profile, replace};

use super::{WEB, World};

const CA: &str = "certificate-authority: ca.crt";
const EXEC: &str = "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never, \
                    provideClusterInfo: true, args: [a, b], env: [{name: SECRET, value: s}]}";

impl World {
    /// A plugin in the node's folder.
    fn plugin(&self, script: &str) {
        let path = self.node.dir().join("plugin");
        let folder = self.node.dir().display();
        replace(&path, &format!("#!/bin/sh\ncd {folder}\n{script}\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("an executable");
    }

    /// A plugin that issues the content of the file `status`.
    fn issuing(&self) {
        self.plugin(
            "echo \"$@ $SECRET $KUBERNETES_EXEC_INFO\" > asked; \
             printf '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":%s}' \
             \"$(cat status)\"",
        );
    }

    fn status(&self, status: &serde_json::Value) {
        replace(&self.node.dir().join("status"), &status.to_string());
    }
}

#[test]
fn a_token_is_issued_anew_after_a_refusal() {
    let mut world = World::new();
    let front = world.front(None);
    world.issuing();
    world.status(&serde_json::json!({"token": "first"}));
    world.api.require_token(Some("first"));
    world.start(&front.url(), CA, EXEC);
    world.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    let asked = std::fs::read_to_string(world.node.dir().join("asked")).expect("the plugin ran");
    let server = format!("\"server\":\"{}\"", front.url());
    for part in ["a b s {", "ExecCredential", "\"interactive\":false", "certificate-authority-data", &server] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
    world.status(&serde_json::json!({"token": "second"}));
    world.api.require_token(Some("second"));
    world.api.end_watches(End::Clean);
    world.works("10.244.2.6");
    assert!(!world.node.log().contains("second"), "tokens do not belong into a log");
}

#[test]
fn a_certificate_is_issued_and_replaced_before_it_ends() {
    let mut world = World::new();
    let front = world.front(Some(&world.authority));
    world.issuing();
    let authority = world.authority.clone();
    let status = |name: &str, end: &str| {
        let client = Certified::new(&Profile::leaf(name), Some(&authority));
        let (certificate, key) = (client.pem(), client.key_pem());
        serde_json::json!({"clientCertificateData": certificate, "clientKeyData": key, "expirationTimestamp": end})
    };
    world.status(&status("one", "2020-01-01T00:00:00Z"));
    world.start(&front.url(), CA, EXEC);
    world.node.until_endpoints(WEB, &["10.244.2.5:8080"]);
    world.status(&status("two", "2199-01-01T00:00:00Z"));
    world.node.until("the second certificate is used", || front.clients().contains(&"two".to_owned()));
    world.works("10.244.2.6");
}

#[test]
fn failing_or_hanging_plugin_is_named_and_delays_nothing_else() {
    let mut world = World::new();
    let front = world.front(None);
    world.plugin("echo secret; echo please log in >&2; exit 4");
    world.start(&front.url(), CA, EXEC);
    world.node.until_logged(&[&front.url(), "exec plugin", "/plugin", "exit status: 4", "please log in"]);
    world.plugin("echo secret");
    world.node.until_logged(&[&front.url(), "exec plugin", "/plugin", "no ExecCredential"]);
    world.plugin("sleep 1000 & echo $! > child; wait");
    world.node.until("the plugin hangs", || world.node.dir().join("child").exists());
    for page in ["/livez", "/healthz"] {
        assert!(world.node.health(page).is_some(), "{page} is answered");
    }
    assert!(!world.node.log().contains("secret"), "what a plugin prints does not belong into a log");
    assert!(world.node.end(nix::sys::signal::Signal::SIGTERM).success(), "it ends though the plugin hangs");
}
