//! A configuration file that changes while the proxy runs (behaviour.yaml I4).

use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::SystemTime;

use super::*;

const UPDATED: &str = "content of the proxy server's configuration file was updated";

/// A proxy running with a configuration file.
fn running(config: &Path) -> World {
    let mut world = World::new();
    world.start(&["--config", &config.to_string_lossy()]);
    world.until_endpoint("10.244.2.5");
    world
}

/// The proxy exits with code 1, the reason in the log, and rules left in place.
fn ends(mut world: World) {
    let status = world.node.wait();
    assert_eq!(status.code(), Some(1), "{}", world.node.log());
    world.node.until_logged(&[UPDATED]);
    world.until_endpoint("10.244.2.5");
}

fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("kube-proxy-config-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn config(sync_period: &str) -> String {
    format!("{HEAD}iptables: {{syncPeriod: {sync_period}, minSyncPeriod: 10ms}}\n")
}

#[test]
fn an_edit_in_place_ends_the_proxy() {
    let folder = folder("edit");
    let path = folder.join("config.conf");
    std::fs::write(&path, config("30s")).expect("a configuration");
    let world = running(&path);
    std::fs::write(&path, config("31s")).expect("an edit");
    ends(world);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_file_renamed_over_it_ends_the_proxy() {
    let folder = folder("rename");
    let path = folder.join("config.conf");
    std::fs::write(&path, config("30s")).expect("a configuration");
    let world = running(&path);
    replace(&path, &config("31s"));
    ends(world);
    let _ = std::fs::remove_dir_all(folder);
}

/// The kubelet writes a ConfigMap to a new folder and redirects the symbolic link `..data` to it.
#[test]
fn a_config_map_that_is_swapped_ends_the_proxy() {
    let folder = folder("swap");
    let version = |name: &str, text: &str| {
        std::fs::create_dir(folder.join(name)).expect("a folder");
        std::fs::write(folder.join(name).join("config.conf"), text).expect("a configuration");
        symlink(name, folder.join("..data_tmp")).expect("a link");
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("put it in place");
    };
    version("..2026_01", &config("30s"));
    symlink("..data/config.conf", folder.join("config.conf")).expect("a link");
    let world = running(&folder.join("config.conf"));
    version("..2026_02", &config("31s"));
    std::fs::remove_dir_all(folder.join("..2026_01")).expect("the old folder goes");
    ends(world);
    let _ = std::fs::remove_dir_all(folder);
}

/// `kube-proxy --config <(kubectl get configmap …)`
#[test]
fn a_pipe_is_read_once() {
    let mut world = World::new();
    let path = world.node.dir().join("config.conf");
    std::fs::write(&path, config("30s")).expect("a configuration");
    let pipe = world.node.dir().join("pipe").display().to_string();
    let shell = format!("mkfifo {pipe}; cat {} >{pipe} & exec \"$@\"", path.display());
    let arguments = [format!("--config={pipe}"), format!("--objects={}", world.objects().display())];
    world.node.start_by(&["sh", "-c", &shell, "sh"], &arguments.each_ref().map(String::as_str));
    world.until_endpoint("10.244.2.5");
    world.node.until_logged(&["pipe: not a regular file"]);
}

#[test]
fn new_mtime_mode_or_equal_content_does_not_end_the_proxy() {
    let folder = folder("touch");
    let path = folder.join("config.conf");
    std::fs::write(&path, config("30s")).expect("a configuration");
    let world = running(&path);
    File::options().append(true).open(&path).expect("open").set_modified(SystemTime::UNIX_EPOCH).expect("a date");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("a mode");
    replace(&path, &config("30s"));
    // That takes longer than to look at a file.
    for pod in ["10.244.2.6", "10.244.2.7", "10.244.2.5"] {
        world.set_endpoint(pod);
        world.until_endpoint(pod);
    }
    assert!(!world.node.log().contains(UPDATED), "{}", world.node.log());
    // It was watched all the time.
    replace(&path, &config("31s"));
    ends(world);
    let _ = std::fs::remove_dir_all(folder);
}
