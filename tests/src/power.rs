//! A filesystem with a power switch: an image on a loop device, whose filesystem is shut down in the
//! middle of its work. What was not yet on the device is gone then, as after a power cut; the device
//! itself keeps what it was given.
//!
//! Needs root and loop devices; [`Disk::create`] says so where the machine refuses them.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::scratch::Scratch;

/// A process that was killed may hold the mount a moment longer.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(10);
/// Whoever made a mount namespace of their own beside us is done with it by then.
const RELEASE_DEADLINE: Duration = Duration::from_secs(60);

/// Which filesystem is put on the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// As most container hosts have it: `data=ordered`.
    Ext4,
    /// With delayed allocation and a log of its own.
    Xfs,
}

impl FileSystem {
    /// The size of an image in MiB: small, so that making and checking it is quick, and not below what the
    /// filesystem's tools accept. The file is sparse.
    fn mebibytes(self) -> u64 {
        match self {
            Self::Ext4 => 256,
            Self::Xfs => 400,
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        })
    }
}

/// A mounted filesystem of its own. Dropping it unmounts it and removes the image.
#[derive(Debug)]
pub struct Disk {
    kind: FileSystem,
    image: PathBuf,
    folder: PathBuf,
    /// A tool that has the filesystem open and waits for the word, so that no time passes between the moment
    /// from which on answers do not count and the cut.
    switch: Mutex<Option<Child>>,
    // Last: the image is removed after it is unmounted.
    _scratch: Scratch,
}

impl Disk {
    /// Makes and mounts an empty filesystem.
    ///
    /// # Errors
    /// The machine refuses: not root, no loop devices, or a tool is missing.
    pub fn create(kind: FileSystem) -> Result<Self> {
        let scratch = Scratch::new("outrigger-disk")?;
        let (image, folder) = (scratch.file("image"), scratch.file("mounted"));
        let disk = Self { kind, image, folder, switch: Mutex::new(None), _scratch: scratch };
        std::fs::create_dir(&disk.folder)?;
        std::fs::File::create(&disk.image)?.set_len(kind.mebibytes() << 20)?;
        disk.make()?;
        disk.mount()?;
        Ok(disk)
    }

    /// The folder it is mounted on.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Empties it: a new filesystem on the same image. Nothing may be open on it.
    ///
    /// # Errors
    /// A tool failed.
    pub fn format(&self) -> Result<()> {
        self.unmount()?;
        self.make()?;
        self.mount()
    }

    /// The cut. From now on every access fails with EIO, and nothing that is not on the device will get
    /// there: not even the filesystem's own log is flushed.
    ///
    /// # Errors
    /// The tool failed.
    pub fn cut(&self) -> Result<()> {
        let mut switch = self.switch().take().context("the power is cut already")?;
        let mut words = switch.stdin.take().context("the switch does not listen")?;
        words.write_all(b"shutdown\n")?;
        drop(words);
        let output = switch.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && said.is_empty(), "xfs_io ended with {}: {said}", output.status);
        let written = std::fs::write(self.folder.join("after the cut"), "");
        ensure!(written.is_err(), "the filesystem takes files after the cut");
        Ok(())
    }

    /// The kernel gives the filesystem up and makes it read-only, as after damage that it has found. ext4 only;
    /// [`Self::restore`] ends it.
    ///
    /// # Errors
    /// The tool failed.
    pub fn abort(&self) -> Result<()> {
        self.disarm();
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.folder))?;
        // It notices at its next change, and that one still fails or not.
        let _ = std::fs::write(self.folder.join("the last one"), "");
        let begin = Instant::now();
        while std::fs::write(self.folder.join("after the abort"), "").is_ok() {
            ensure!(begin.elapsed() < UNMOUNT_DEADLINE, "the filesystem takes files after it was given up");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Power is back: the filesystem recovers by itself, its checker finds nothing wrong, and it is mounted
    /// as before. Whoever had files open must be dead.
    ///
    /// # Errors
    /// The filesystem does not recover, or its checker finds something.
    pub fn restore(&self) -> Result<()> {
        self.unmount()?;
        // The first mount replays the filesystem's log; its checker looks at what that has made.
        self.mount()?;
        self.unmount()?;
        match self.kind {
            FileSystem::Ext4 => run(Command::new("fsck.ext4").args(["-f", "-n"]).arg(&self.image)),
            FileSystem::Xfs => run(Command::new("xfs_repair").arg("-n").arg(&self.image)),
        }
        .context("the filesystem is damaged")?;
        self.mount()
    }

    fn make(&self) -> Result<()> {
        let mut command = Command::new(format!("mkfs.{}", self.kind));
        match self.kind {
            FileSystem::Ext4 => command.arg("-qF"),
            FileSystem::Xfs => command.arg("-qf"),
        };
        run(command.arg(&self.image))
    }

    fn mount(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.folder))?;
        let mut switch = Command::new("xfs_io");
        switch.arg("-x").arg(&self.folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        *self.switch() = Some(switch.spawn().context("run xfs_io")?);
        Ok(())
    }

    fn switch(&self) -> MutexGuard<'_, Option<Child>> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts away a switch that was not used: it has the filesystem open.
    fn disarm(&self) {
        if let Some(mut switch) = self.switch().take() {
            let _ = switch.kill();
            let _ = switch.wait();
        }
    }

    fn unmount(&self) -> Result<()> {
        self.disarm();
        let begin = Instant::now();
        while let Err(error) = run(Command::new("umount").arg(&self.folder)) {
            if begin.elapsed() > UNMOUNT_DEADLINE {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // A mount namespace that was made meanwhile has a mount of its own of the same filesystem, and the next
        // mount would be of that one: still shut down, or still in use.
        while self.is_attached()? {
            ensure!(begin.elapsed() < RELEASE_DEADLINE, "another mount namespace holds the filesystem");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether a loop device has the image. It lets go by itself when the last mount is gone.
    fn is_attached(&self) -> Result<bool> {
        for device in std::fs::read_dir("/sys/block")? {
            let backing = std::fs::read_to_string(device?.path().join("loop/backing_file")).unwrap_or_default();
            if Path::new(backing.trim_end()) == self.image {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.disarm();
        // Lazily, where someone still has a file open: the image must not outlive the experiment.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).stderr(Stdio::null()).status();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        bail!("{program} ended with {}: {}", output.status, said.join("\n"));
    }
    Ok(())
}
