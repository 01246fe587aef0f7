//! Faults of the whole machine: they are injected in a kernel that no one else uses.
//!
//! `nf_conntrack_max` and `CLOCK_REALTIME` belong to no namespace. The harness runs itself again, for one row, in the
//! kernel that `golden/tools/with-ipvs` boots (User-mode Linux).

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::kinds::Fault;
use super::report::Report;

/// Set for the harness in a kernel of its own.
const VARIABLE: &str = "OWN_KERNEL";
/// The status of `with-ipvs` if there is no such kernel.
const NO_KERNEL: i32 = 125;

/// Whether this kernel is the harness's own.
pub fn is_this() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Injects a fault in a kernel of its own and prints its row; whether it passes. Without such a kernel it fails.
pub fn passes_there(fault: &Fault, proxies: usize) -> bool {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // Process numbers there are small and the files are the machine's: a folder of its own keeps two runs apart.
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
