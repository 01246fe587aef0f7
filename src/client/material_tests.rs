//! Rotation of certificates and authorities.

use std::path::PathBuf;

use golden::pki::{Certified, Profile, replace};

use super::*;

struct Files {
    folder: PathBuf,
    authority: Certified,
}

impl Files {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("material-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let authority = Certified::new(&Profile::authority("ca"), None);
        replace(&folder.join("ca.crt"), &authority.pem());
        let files = Self { folder, authority };
        files.client("one").write(&files.folder, "client");
        files
    }

    fn client(&self, name: &str) -> Certified {
        Certified::new(&Profile::leaf(name), Some(&self.authority))
    }

    fn material(&self) -> Result<Arc<TlsMaterial>, String> {
        let pem = |name| Pem::File(self.folder.join(name));
        let identity = IdentitySource::Pair(pem("client.crt"), pem("client.key"));
        TlsMaterial::new(Authorities::Configured(pem("ca.crt")), identity, true, ConfigOrigins::default())
    }
}

fn rotations(material: &TlsMaterial) -> u64 {
    *material.rotations.borrow()
}

#[tokio::test]
async fn a_new_client_certificate_closes_connections_and_half_of_it_does_not() {
    let files = Files::new("identity");
    let material = files.material().expect("valid files");
    let mut handshake = material.handshake().await.expect("valid files");
    assert_eq!((rotations(&material), handshake.rotated.has_changed().ok()), (0, Some(false)));
    let two = files.client("two");
    // The certificate is replaced, its key not yet.
    replace(&files.folder.join("client.crt"), &two.pem());
    material.handshake().await.expect("the last valid pair");
    assert_eq!(rotations(&material), 0);
    replace(&files.folder.join("client.key"), "");
    material.handshake().await.expect("the last valid pair");
    std::fs::remove_file(files.folder.join("client.key")).expect("it is there");
    material.handshake().await.expect("the last valid pair");
    assert_eq!(rotations(&material), 0);
    replace(&files.folder.join("client.key"), &two.key_pem());
    material.renew_identity().await.expect("a valid pair");
    assert_eq!(rotations(&material), 1);
    handshake.rotated.changed().await.expect("the material is there");
    // The new connection stays open.
    let handshake = material.handshake().await.expect("valid files");
    assert_eq!((rotations(&material), handshake.rotated.has_changed().ok()), (1, Some(false)));
}

#[tokio::test]
async fn authorities_are_read_again_after_a_while_and_stay_if_the_file_is_broken() {
    let files = Files::new("authorities");
    let material = files.material().expect("valid files");
    let age = || material.loaded.lock().expect("not poisoned").authorities_read = None;
    let count = || material.loaded.lock().expect("not poisoned").authorities.len();
    let other = Certified::new(&Profile::authority("other"), None);
    replace(&files.folder.join("ca.crt"), &format!("{}{}", files.authority.pem(), other.pem()));
    material.handshake().await.expect("valid files");
    assert_eq!(count(), 1, "read a moment ago");
    age();
    material.handshake().await.expect("valid files");
    assert_eq!(count(), 2);
    for broken in ["", "garbage", "-----BEGIN CERTIFICATE-----\nMIIBAAAA\n-----END CERTIFICATE-----\n"] {
        replace(&files.folder.join("ca.crt"), broken);
        age();
        material.handshake().await.expect("the last valid authorities");
        assert_eq!(count(), 2, "{broken:?}");
    }
    assert_eq!(rotations(&material), 0, "existing connections stay");
}

#[test]
fn files_that_cannot_be_used_at_the_start_are_named() {
    let files = Files::new("start");
    let stranger = files.client("stranger");
    replace(&files.folder.join("client.key"), &stranger.key_pem());
    let error = files.material().err().expect("a mismatch");
    assert!(
        error.contains("client.key does not belong to the certificate /") && error.contains("client.crt"),
        "{error}"
    );
    replace(&files.folder.join("client.key"), "no key");
    assert!(files.material().err().is_some_and(|error| error.contains("client.key: there is no PEM private key")));
    std::fs::remove_file(files.folder.join("ca.crt")).expect("it is there");
    assert!(files.material().err().is_some_and(|error| error.contains("ca.crt: No such file")));
}
