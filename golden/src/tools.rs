//! Wrappers of the iptables programs: shell scripts that run the real program unless a fault is set.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::flavour::Flavour;

/// A fault of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFault {
    /// Waits until the fault is removed, then runs the program.
    Hang,
    /// Prints invalid output and exits with 0.
    Garbage,
    /// Exits with 1 and a message.
    Fail,
    /// Is killed by a signal, as by the OOM killer.
    Killed,
    /// Takes one more second.
    Slow,
    /// Does not exist.
    Missing,
}

/// A folder of wrappers, to be first in PATH.
#[derive(Debug)]
pub struct Tools {
    dir: PathBuf,
    flavour: Option<Flavour>,
}

impl Tools {
    /// Creates wrappers for all programs of both families and flavours in `dir/bin`.
    ///
    /// # Panics
    /// If files cannot be written.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self::with_default(dir, None)
    }

    /// As [`Tools::new`], with a flavour for programs without one in their names: `iptables-restore`.
    ///
    /// # Panics
    /// If files cannot be written.
    #[must_use]
    pub fn of_flavour(dir: &Path, flavour: Flavour) -> Self {
        Self::with_default(dir, Some(flavour))
    }

    fn with_default(dir: &Path, flavour: Option<Flavour>) -> Self {
        let tools = Self { dir: dir.to_owned(), flavour };
        std::fs::create_dir_all(dir.join("bin")).expect("a folder");
        for tool in names() {
            tools.install(&tool);
        }
        tools
    }

    /// The value of PATH that includes the wrappers.
    #[must_use]
    pub fn path(&self) -> String {
        let own = self.dir.join("bin").display().to_string();
        format!("{own}:{}", std::env::var("PATH").unwrap_or_default())
    }

    /// Sets a fault for programs whose name contains `part`: `restore`, `nft-save`.
    ///
    /// # Panics
    /// If files cannot be written.
    pub fn fault(&self, part: &str, fault: ToolFault) {
        for tool in names().iter().filter(|tool| tool.contains(part)) {
            let word = match fault {
                ToolFault::Hang => "hang",
                ToolFault::Garbage => "garbage",
                ToolFault::Fail => "fail",
                ToolFault::Killed => "killed",
                ToolFault::Slow => "slow",
                ToolFault::Missing => {
                    std::fs::remove_file(self.bin(tool)).expect("it is there");
                    continue;
                }
            };
            std::fs::write(self.dir.join(format!("{tool}.fault")), word).expect("a flag");
        }
    }

    /// Removes all faults; hanging programs continue.
    ///
    /// # Panics
    /// If files cannot be written.
    pub fn mend(&self) {
        for tool in names() {
            if !self.bin(&tool).exists() {
                self.install(&tool);
            }
            let _ = std::fs::remove_file(self.dir.join(format!("{tool}.fault")));
        }
    }

    /// The processes that hung, including any that continued.
    #[must_use]
    pub fn hung(&self) -> BTreeSet<u32> {
        let text = std::fs::read_to_string(self.dir.join("hung")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The soft limits on open files of programs that hung.
    #[must_use]
    pub fn limits(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(self.dir.join("limits")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn bin(&self, tool: &str) -> PathBuf {
        self.dir.join("bin").join(tool)
    }

    fn install(&self, tool: &str) {
        let dir = self.dir.display();
        let real = PathBuf::from("/usr/sbin").join(match self.flavour {
            Some(flavour) if !tool.contains("-nft") && !tool.contains("-legacy") => {
                tool.replacen("tables", &format!("tables-{flavour}"), 1)
            }
            _ => tool.to_owned(),
        });
        let script = format!(
            "#!/bin/sh\n\
             fault='{dir}/{tool}.fault'\n\
             [ -e \"$fault\" ] || exec {real} \"$@\"\n\
             case $(cat \"$fault\") in\n\
             hang) ulimit -S -n >>'{dir}/limits'; echo $$ >>'{dir}/hung'\n\
             while [ -e \"$fault\" ]; do sleep 0.1; done; exec {real} \"$@\" ;;\n\
             garbage) head -c 3000 /dev/urandom; exit 0 ;;\n\
             killed) kill -9 $$ ;;\n\
             slow) sleep 1; exec {real} \"$@\" ;;\n\
             *) echo 'no such luck' >&2; exit 1 ;;\n\
             esac\n",
            real = real.display()
        );
        // A file open for writing cannot be executed, so the script is renamed into place.
        let draft = self.dir.join("draft");
        std::fs::write(&draft, script).expect("a script");
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).expect("to make it executable");
        std::fs::rename(draft, self.bin(tool)).expect("to put it in place");
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        // Usually they exit with the proxy.
        for pid in self.hung().into_iter().filter(|pid| runs(*pid)) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// Whether a process runs the wrappers' shell. A killed process that was not reaped does not count.
#[must_use]
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn names() -> Vec<String> {
    let mut names = Vec::new();
    for family in ["iptables", "ip6tables"] {
        for flavour in ["", "-nft", "-legacy"] {
            names.extend(["", "-save", "-restore"].map(|suffix| format!("{family}{flavour}{suffix}")));
        }
    }
    names
}
