//! CPU time, memory and descriptors of a process, from `/proc`.

use std::fs;
use std::time::Duration;

/// CPU time used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Of the process itself.
    pub own: Duration,
    /// Of the children that it waited for: the iptables tools.
    pub children: Duration,
}

impl Cpu {
    /// The CPU time of a process.
    pub fn of(pid: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The second field is a name and may have blanks in it.
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        let ticks = |index: usize| Duration::from_millis(fields.get(index).copied().unwrap_or_default() * 10);
        // After the name come the state and then, as fields 14 to 17, utime, stime, cutime, cstime.
        Self { own: ticks(11) + ticks(12), children: ticks(13) + ticks(14) }
    }

    /// The difference to an earlier value.
    pub fn since(self, earlier: Self) -> Self {
        Self { own: self.own.saturating_sub(earlier.own), children: self.children.saturating_sub(earlier.children) }
    }
}

/// Resident kilobytes: now, and at most.
pub fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// The number of running children.
pub fn children(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.map(|task| of_task(task).split_whitespace().count()).sum()
}

/// The number of entries of a folder of the process: `fd` for descriptors, `task` for threads.
pub fn entries(pid: u32, folder: &str) -> u64 {
    fs::read_dir(format!("/proc/{pid}/{folder}")).map_or(0, |all| all.count() as u64)
}
