//! Files in places that hang or cannot be watched.

use std::time::{Duration, Instant};

use golden::seccomp::Denied;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use super::World;

#[test]
fn hanging_object_files_delay_neither_health_checks_nor_shutdown() {
    let mut world = World::new();
    // Opening a named pipe blocks until a writer opens it.
    let pipe = world.folder.join("pipe.yaml");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).expect("a pipe");
    world.node.start(&["--objects", &pipe.to_string_lossy(), "--iptables-min-sync-period=0s"]);
    world.node.until_logged(&["Reading objects from", "pipe.yaml"]);
    for path in ["/healthz", "/livez"] {
        world.node.until_health(path, 200);
    }
    let begun = Instant::now();
    let status = world.node.end(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{}", world.node.log());
    assert!(begun.elapsed() < Duration::from_secs(10), "stopping took {:?}", begun.elapsed());
}

#[test]
fn objects_are_polled_where_the_kernel_grants_no_inotify_instance() {
    let mut world = World::new();
    let errno = libc::EMFILE;
    world.node.deny(&[Denied { syscall: libc::SYS_inotify_init1, errno, first_argument: None }]);
    world.start();
    world.leads("web", &["10.244.2.5"]);
    world.node.until_logged(&["Failed to watch", "polling every 10s"]);
    world.write("web.yaml", &[golden::sample::slice("web-1", "web", &["10.244.2.6"])]);
    world.leads("web", &["10.244.2.6"]);
    assert_eq!(world.node.log().matches("Failed to watch").count(), 1, "it is logged once");
}
