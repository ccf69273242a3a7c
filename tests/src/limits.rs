//! Little room: file systems and groups of processes that are smaller than what is put into them. Each goes
//! with its value, also when an experiment fails.
//!
//! Needs root; the makers say so where the machine refuses them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::process::DaemonCommand;
use kit_workbench::scratch::Scratch;

/// The filler grows in steps of a page of memory, the smallest a `tmpfs` gives.
const PAGE: u64 = 4096;

/// A mounted file system in memory with room for so many bytes. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
    // Last: the folder is removed after it is unmounted.
    _scratch: Scratch,
}

impl SmallDisk {
    /// Makes and mounts one.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn create(bytes: u64) -> Result<Self> {
        let scratch = Scratch::new("outrigger-small")?;
        let folder = scratch.file("mounted");
        std::fs::create_dir(&folder)?;
        let disk = Self { folder, _scratch: scratch };
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size(bytes), "tmpfs"]).arg(&disk.folder))?;
        Ok(disk)
    }

    /// The folder it is mounted on.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives it room for so many bytes, less or more than before.
    ///
    /// # Errors
    /// More than that is in use.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,{}", size(bytes))]).arg(&self.folder))
    }

    /// Takes all the room but so many bytes, in a file of its own.
    ///
    /// # Errors
    /// The file cannot be written for another reason than that the disk is full.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let mut filler = std::fs::OpenOptions::new().create(true).append(true).open(self.filler())?;
        loop {
            match std::io::Write::write(&mut filler, &[1; PAGE as usize]) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        let length = filler.metadata()?.len();
        filler.set_len(length.saturating_sub(leave) / PAGE * PAGE)?;
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// There was no filler.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, where someone still has a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).stderr(Stdio::null()).status();
    }
}

fn size(bytes: u64) -> String {
    format!("size={}k", bytes / 1024)
}

/// A command whose files may not grow beyond so many bytes.
pub fn with_file_limit(command: DaemonCommand, bytes: u64) -> DaemonCommand {
    // The soft limit only: it is raised again while the daemon runs.
    command.wrapped("prlimit", [format!("--fsize={bytes}:unlimited"), "--".to_owned()])
}

/// Changes the limit of a running process.
///
/// # Errors
/// The process is gone, or the machine refuses.
pub fn set_file_limit(pid: u32, bytes: Option<u64>) -> Result<()> {
    let limit = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
    run(Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--fsize={limit}:unlimited")]))
}

/// Lets an ext4 find an error in itself, upon which it turns read-only whoever has files open: the usual way in
/// which disks end. Only mounting it anew makes it writable again.
///
/// # Errors
/// The folder is no ext4 of its own, or the kernel has no such switch.
pub fn turn_read_only(folder: &Path) -> Result<()> {
    run(Command::new("mount").args(["-o", "remount,errors=remount-ro"]).arg(folder))?;
    let found = Command::new("findmnt").args(["-no", "SOURCE"]).arg(folder).output().context("run findmnt")?;
    let device = String::from_utf8(found.stdout)?;
    let device = device.trim().strip_prefix("/dev/").context("no device is mounted there")?;
    std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "an experiment")?;
    let written = std::fs::write(folder.join("after the error"), "");
    ensure!(
        written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem),
        "not read-only: {written:?}"
    );
    Ok(())
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

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    ensure!(output.stderr.is_empty(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
