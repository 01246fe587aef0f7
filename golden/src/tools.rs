//! Stand-ins for the iptables tools: shell scripts that run the real tool until they are given a fault.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::flavour::Flavour;

/// What a tool does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFault {
    /// Waits until the fault is mended, then does its work.
    Hang,
    /// Prints nonsense and exits with 0.
    Garbage,
    /// Exits with 1 and a message.
    Fail,
    /// Is killed, as by the kernel when memory runs out.
    Killed,
    /// Takes a second longer.
    Slow,
    /// Is not there.
    Missing,
}

/// A folder of stand-ins to be first in PATH.
#[derive(Debug)]
pub struct Tools {
    dir: PathBuf,
    flavour: Option<Flavour>,
}

impl Tools {
    /// Makes stand-ins for all iptables tools of both families and flavours in `dir/bin`.
    ///
    /// # Panics
    /// When files cannot be written.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self::with_default(dir, None)
    }

    /// The same, with a flavour for the tools that have none in their names: `iptables-restore`.
    ///
    /// # Panics
    /// When files cannot be written.
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

    /// The value of PATH with the stand-ins in it.
    #[must_use]
    pub fn path(&self) -> String {
        let own = self.dir.join("bin").display().to_string();
        format!("{own}:{}", std::env::var("PATH").unwrap_or_default())
    }

    /// Has tools fail from their next start on. `part` is a part of their names: `restore`, `nft-save`.
    ///
    /// # Panics
    /// When files cannot be written.
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

    /// Has all tools work again, those too that hang.
    ///
    /// # Panics
    /// When files cannot be written.
    pub fn mend(&self) {
        for tool in names() {
            if !self.bin(&tool).exists() {
                self.install(&tool);
            }
            let _ = std::fs::remove_file(self.dir.join(format!("{tool}.fault")));
        }
    }

    /// The processes that have begun to hang, those too that hang no more.
    #[must_use]
    pub fn hung(&self) -> BTreeSet<u32> {
        let text = std::fs::read_to_string(self.dir.join("hung")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The soft limits on open files that hanging tools had.
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
        // A script that is being written cannot be run: it is put in place whole.
        let draft = self.dir.join("draft");
        std::fs::write(&draft, script).expect("a script");
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).expect("to make it executable");
        std::fs::rename(draft, self.bin(tool)).expect("to put it in place");
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        // Mostly they are gone with the proxy.
        for pid in self.hung().into_iter().filter(|pid| runs(*pid)) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// Whether a process with that number runs the scripts' shell; one that was killed and not reaped yet does not run.
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
