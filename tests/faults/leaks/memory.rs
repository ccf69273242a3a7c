//! What others on the machine may see of a daemon's memory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::process::DaemonCommand;
use outrigger_tests::binaries;
use outrigger_tests::rig::{DAEMON, Mode, Rig, STOP_LIMIT};

/// No core is written when the daemon is aborted, though the limit would allow it, and what `/proc`
/// shows of its memory and environment belongs to root, whoever it runs as.
pub(super) async fn memory_is_closed() -> Result<String> {
    let rig = Rig::new(Mode::Hmac, &[]).await?;
    let cores = rig.scratch.file("cores");
    std::fs::create_dir(&cores)?;
    // What happens to a program that does not ask for it: if that leaves no core either, this machine
    // cannot show the difference.
    let sleeper = DaemonCommand::new("/bin/sleep").args(["60"]);
    let control = aborted(&rig, sleeper, &cores, false).await?;
    let own = aborted(&rig, rig.command()?, &cores, true).await?;
    ensure!(own.0 == 0, "a core of {} bytes was written", own.0);
    ensure!(own.1 == 0, "the memory of a daemon of user 65534 belongs to user {}", own.1);
    let shown = if control.0 > 0 { "no core" } else { "cores cannot be shown here" };
    ensure!(control.1 == UNPRIVILEGED, "the control's memory belongs to {}", control.1);
    Ok(format!("{shown}, /proc closed"))
}

/// `nobody`.
const UNPRIVILEGED: u32 = 65_534;

/// Runs a command as an unprivileged user, aborts it, and tells the size of the core it left and whose
/// its `/proc/PID/environ` was.
async fn aborted(rig: &Rig, command: DaemonCommand, cores: &Path, daemon: bool) -> Result<(u64, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::fs::PermissionsExt as _;
    // The unprivileged user must reach its files.
    for folder in [rig.scratch.path(), cores, &rig.scratch.file("state")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777))?;
    }
    for file in std::fs::read_dir(rig.scratch.path())? {
        let file = file?.path();
        if file.is_file() {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666))?;
        }
    }
    let program = match daemon {
        // Where the build lies may not be open to everybody; the scratch folder is.
        true => {
            let copy = rig.scratch.file("daemon");
            std::fs::copy(binaries::daemon(DAEMON)?, &copy)?;
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
            DaemonCommand::new(copy).envs(rig.environment().to_vec())
        }
        false => command,
    };
    let user = UNPRIVILEGED.to_string();
    let program = program.directory(cores).wrapped(
        "/usr/bin/setpriv",
        ["--reuid", &user, "--regid", &user, "--clear-groups", "--", "/usr/bin/prlimit", "--core=unlimited"],
    );
    let mut process = program.spawn()?;
    if daemon {
        process.wait_ready(rig.admin, STOP_LIMIT * 2).await?;
    } else {
        // setpriv and prlimit replace themselves.
        let begin = Instant::now();
        while std::fs::read(format!("/proc/{}/comm", process.pid()))? != b"sleep\n" {
            ensure!(begin.elapsed() < STOP_LIMIT, "the control does not start: {}", process.stderr());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let owner = std::fs::metadata(format!("/proc/{}/environ", process.pid()))?.uid();
    let id = i32::try_from(process.pid())?;
    let id = rustix::process::Pid::from_raw(id).context("a process has an id")?;
    rustix::process::kill_process(id, rustix::process::Signal::ABORT)?;
    let exit = process.wait(STOP_LIMIT * 2).await?;
    ensure!(exit.signal == Some(6), "aborted, it ended with {exit}: {}", process.stderr());
    let mut size = 0;
    for file in std::fs::read_dir(cores)? {
        let file = file?.path();
        size += std::fs::metadata(&file)?.len();
        std::fs::remove_file(file)?;
    }
    Ok((size, owner))
}
