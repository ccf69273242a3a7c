//! Limits around a daemon: a volume that is nearly full, a largest file, a share of the memory.
//!
//! Everything here needs root; what cannot be made says so, and what was made is removed when dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::scratch::Scratch;

/// What fills a volume.
const FILLER: &str = "filler";

/// A mounted volume with little room. Dropping it unmounts it.
#[derive(Debug)]
pub struct Volume {
    folder: PathBuf,
    // Last: the image is removed after it is unmounted.
    _scratch: Scratch,
}

impl Volume {
    /// A volume in memory of this size.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn tmpfs(bytes: u64) -> Result<Self> {
        let volume = Self::unmounted()?;
        let options = format!("size={bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&volume.folder))?;
        Ok(volume)
    }

    /// An ext4 filesystem on a loop device, of this size before its own account of things.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn ext4(bytes: u64) -> Result<Self> {
        let volume = Self::unmounted()?;
        let image = volume._scratch.file("image");
        std::fs::File::create(&image)?.set_len(bytes)?;
        // Without the share that is kept back for root: the daemon under test is root. With blocks as large as
        // a page, which small images do not have by themselves: a hole in a page of SQLite's shared index
        // would be filled when the page is written, and a full disk is a SIGBUS then.
        run(Command::new("mkfs.ext4").args(["-qF", "-m", "0", "-b", "4096"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&volume.folder))?;
        Ok(volume)
    }

    fn unmounted() -> Result<Self> {
        let scratch = Scratch::new("outrigger-volume")?;
        let folder = scratch.file("mounted");
        std::fs::create_dir(&folder)?;
        Ok(Self { folder, _scratch: scratch })
    }

    /// The folder it is mounted on.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// It cannot say.
    pub fn free_bytes(&self) -> Result<u64> {
        let text = run(Command::new("df").args(["-B1", "--output=avail"]).arg(&self.folder))?;
        text.lines().last().context("df says nothing")?.trim().parse().context("an unknown form of df")
    }

    /// Takes all room but this.
    ///
    /// # Errors
    /// There is less.
    pub fn fill_up_to(&self, left: u64) -> Result<()> {
        let free = self.free_bytes()?;
        ensure!(free > left, "{free} bytes are free, not more than {left}");
        let length = (free - left).to_string();
        run(Command::new("fallocate").args(["-l", &length]).arg(self.folder.join(FILLER))).map(drop)
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// It was not taken.
    pub fn empty(&self) -> Result<()> {
        std::fs::remove_file(self.folder.join(FILLER)).context("remove what fills the volume")
    }

    /// Changes the size of a volume in memory while it is in use.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(&self.folder)).map(drop)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a daemon that is still being killed must not keep it.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).stderr(Stdio::null()).status();
    }
}

/// Sets the largest file that a running process may write; `None` for no limit.
///
/// # Errors
/// The machine refuses.
pub fn limit_file_size(pid: u32, bytes: Option<u64>) -> Result<()> {
    let limit = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
    let (pid, limit) = (format!("--pid={pid}"), format!("--fsize={limit}:"));
    run(Command::new("prlimit").args([pid, limit])).map(drop)
}

/// A control group that limits memory (version 1); removed when dropped.
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
}

impl MemoryLimit {
    /// A group with this limit and nobody in it.
    ///
    /// # Errors
    /// The machine has no such groups, or refuses.
    pub fn create(bytes: u64) -> Result<Self> {
        let parent = Path::new("/sys/fs/cgroup/memory");
        let folder = parent.join(format!("outrigger-test-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).with_context(|| format!("make a control group in {}", parent.display()))?;
        let group = Self { folder };
        group.set(bytes)?;
        Ok(group)
    }

    /// Changes the limit.
    ///
    /// # Errors
    /// The machine refuses, or more than that is in use and cannot be taken away.
    pub fn set(&self, bytes: u64) -> Result<()> {
        let text = bytes.to_string();
        std::fs::write(self.folder.join("memory.limit_in_bytes"), &text).context("limit the memory")
    }

    /// The command that starts another one inside the group, with room for its words behind.
    pub fn wrapper(&self) -> Vec<String> {
        let procs = self.folder.join("cgroup.procs");
        let script = format!("echo $$ > {} && exec \"$@\"", procs.display());
        ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }

    /// The most that was in use so far, in bytes.
    ///
    /// # Errors
    /// The group cannot say.
    pub fn most(&self) -> Result<u64> {
        self.figure("memory.max_usage_in_bytes")
    }

    fn figure(&self, name: &str) -> Result<u64> {
        let text = std::fs::read_to_string(self.folder.join(name)).with_context(|| format!("read {name}"))?;
        text.trim().parse().with_context(|| format!("an unknown form of {name}"))
    }
}

impl Drop for MemoryLimit {
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

/// The processor time that a process has used, in seconds.
///
/// # Errors
/// It is gone.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    /// `sysconf(_SC_CLK_TCK)` on every Linux that this runs on.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the process may hold blanks; what follows its bracket does not.
    let (_, rest) = stat.rsplit_once(") ").context("an unknown form of /proc/PID/stat")?;
    let field = |nth: usize| rest.split(' ').nth(nth).and_then(|text| text.parse::<f64>().ok());
    let (user, system) = (field(11).context("no user time")?, field(12).context("no system time")?);
    Ok((user + system) / TICKS)
}

fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
