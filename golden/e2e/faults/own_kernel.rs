//! Injects machine-wide faults in a kernel of their own.
//!
//! `nf_conntrack_max` and `CLOCK_REALTIME` are not per namespace. The harness runs itself for one row in the kernel
//! that `golden/tools/with-ipvs` boots (User-mode Linux).

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::kinds::Fault;
use super::report::Report;

/// Set for the harness inside that kernel.
const VARIABLE: &str = "OWN_KERNEL";
/// The exit status of `with-ipvs` without such a kernel.
const NO_KERNEL: i32 = 125;

/// Whether this is that kernel.
pub fn is_this() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Injects a fault in that kernel and prints its row; returns whether it passed. Fails without such a kernel.
pub fn passes_there(fault: &Fault, proxies: usize) -> bool {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // Process IDs there are small and files are the machine's, so each run has its own folder.
    let folder = std::env::temp_dir().join(format!("faults-{}-{}", std::process::id(), fault.name));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let kernel = std::env::var("WITH_IPVS").unwrap_or_else(|_| "uml".to_owned());
    let output = Command::new(root.join("golden/tools/with-ipvs"))
        .arg(std::env::current_exe().expect("a program"))
        .env(VARIABLE, "1")
        .env("WITH_IPVS", kernel)
        .env("FAULTS", fault.name)
        .env("TMPDIR", &folder)
        .stdin(Stdio::null())
        .output()
        .expect("golden/tools/with-ipvs");
    let _ = std::fs::remove_dir_all(&folder);
    let text = String::from_utf8_lossy(&output.stdout);
    let row = text.lines().find(|line| line.starts_with(&format!("| {} |", fault.name)));
    match row {
        Some(row) => println!("{row}"),
        None => {
            let why = if output.status.code() == Some(NO_KERNEL) { "not run: no kernel of its own" } else { "failed" };
            println!("{}{}|", Report::subject(fault), Report::no_figures(why).repeat(proxies));
        }
    }
    if !output.status.success() {
        eprintln!("{}:\n{text}{}", fault.name, String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}
