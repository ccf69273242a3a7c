//! A machine on which no further thread can be started.

use std::time::Duration;

use anyhow::{Context, Result};

/// A control group that limits threads; removed when dropped.
pub(super) struct ThreadLimit {
    folder: std::path::PathBuf,
}

impl ThreadLimit {
    /// A group without a limit, with this process in it; `None` where the machine has no such groups.
    pub(super) fn new(pid: u32) -> Option<Self> {
        let v1 = std::path::Path::new("/sys/fs/cgroup/pids");
        let parent = if v1.is_dir() { v1 } else { std::path::Path::new("/sys/fs/cgroup") };
        let folder = parent.join(format!("outrigger-test-{pid}"));
        std::fs::create_dir(&folder).ok()?;
        let group = Self { folder };
        let moved = std::fs::write(group.folder.join("cgroup.procs"), pid.to_string());
        (moved.is_ok() && group.folder.join("pids.max").exists()).then_some(group)
    }

    pub(super) fn set(&self, limit: &str) -> Result<()> {
        std::fs::write(self.folder.join("pids.max"), limit).context("set pids.max")
    }

    pub(super) fn current(&self) -> Result<u64> {
        Ok(std::fs::read_to_string(self.folder.join("pids.current"))?.trim().parse()?)
    }
}

impl Drop for ThreadLimit {
    fn drop(&mut self) {
        // The process in it has been killed or has ended; its last thread may take a moment.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
