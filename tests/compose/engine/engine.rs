//! One Docker Engine for the run, with everything that is its own in a scratch folder.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::scratch::Scratch;
use outrigger_tests::binaries;
use outrigger_tests::experiment::Outcome;
use rustix::process::{Pid, Signal};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::namespaces;

/// The machine as containers see it: the address of the engine's own bridge.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(172, 30, 255, 1);
/// How long the engine may take to answer. A second on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long any command may take; `compose/up` waits for health.
const COMMAND_DEADLINE: Duration = Duration::from_secs(240);
/// Where `cargo static` leaves its binaries.
const STATIC_VARIABLE: &str = "OUTRIGGER_STATIC_DIR";
/// The command line's image, for people.
pub(crate) const COMMAND_LINE: &str = "outrigger";
const CGROUPS: &str = "/sys/fs/cgroup";
/// The tag of the images under test.
pub(crate) const TAG: &str = "0.1.0";

static ENGINE: OnceCell<Result<Engine, String>> = OnceCell::const_new();

/// An engine that runs, with the images of all daemons.
#[derive(Debug)]
pub(crate) struct Engine {
    scratch: Scratch,
    daemon: Mutex<Option<Child>>,
}

/// What a command has printed.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The engine of the run, started for the first who asks. `Err(Ok(…))` is a skip: it cannot run here.
pub(crate) async fn engine() -> Result<&'static Engine, Result<Outcome>> {
    let start = || async { Engine::start().await.map_err(|error| format!("{error:#}")) };
    match ENGINE.get_or_init(start).await {
        Ok(engine) => Ok(engine),
        Err(error) if error.contains(CANNOT_RUN) && !namespaces::is_required() => {
            Err(Ok(Outcome::skipped(error.clone())))
        }
        Err(error) => Err(Err(anyhow::anyhow!("{error}"))),
    }
}

const CANNOT_RUN: &str = "the engine does not run on this machine";

/// Ends the engine, if it was started.
pub(crate) fn stop() {
    let Some(Ok(engine)) = ENGINE.get() else { return };
    let Some(mut daemon) = engine.daemon.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let pid = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    let begin = Instant::now();
    while begin.elapsed() < START_DEADLINE && matches!(daemon.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = daemon.kill();
    // Empty, for nothing runs in them any more: one for each kind of resource, or one for all.
    let parent = cgroup_parent(&engine.scratch);
    let kinds = std::fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in kinds.chain([PathBuf::from(CGROUPS)]) {
        let _ = std::fs::remove_dir(folder.join(&parent));
    }
    // What it has mounted is gone with it; a static is never dropped, so the folder is removed here.
    if std::env::var_os(kit_workbench::scratch::KEEP_VARIABLE).is_none() {
        let _ = std::fs::remove_dir_all(engine.scratch.path());
    }
}

impl Engine {
    async fn start() -> Result<Self> {
        let scratch = Scratch::new("engine")?;
        let log = File::create(scratch.file("dockerd.log"))?;
        let mut command = Process::new("dockerd");
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        command
            .arg(flag("data-root", &scratch.file("data")))
            .arg(flag("exec-root", &scratch.file("exec")))
            .arg(flag("pidfile", &scratch.file("pid")))
            .arg(format!("--host=unix://{}", scratch.file("socket").display()))
            .arg(format!("--bip={HOST}/24"))
            .arg("--default-address-pool=base=172.30.0.0/17,size=24")
            // Groups of processes are not in a namespace: these are ours and go with us.
            .arg(format!("--cgroup-parent=/{}", cgroup_parent(&scratch)))
            .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let daemon = command.spawn().context("start dockerd")?;
        let engine = Self { scratch, daemon: Mutex::new(Some(daemon)) };
        let begin = Instant::now();
        while engine.docker(["info"]).await.is_err() {
            let ended = engine.daemon.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(Child::try_wait);
            if matches!(ended, Some(Ok(Some(_)))) || begin.elapsed() > START_DEADLINE {
                let log = std::fs::read_to_string(engine.scratch.file("dockerd.log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(3).collect();
                bail!("{CANNOT_RUN}: {}", end.join(" / "));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        engine.build_images().await?;
        Ok(engine)
    }

    /// The images, as `compose/context` and `Dockerfile.prebuilt` make them, and one with a shell for attempts from inside.
    async fn build_images(&self) -> Result<()> {
        let compose = binaries::repository().join("compose");
        let context = self.scratch.file("context");
        let mut command = self.command(compose.join("context"));
        command.arg(&context).arg(static_binaries());
        run(command).await.context("build the binaries with cargo static, or ./test compose")?;
        for name in binaries::DAEMONS.into_iter().chain([binaries::SEEDER, COMMAND_LINE]) {
            let file = compose.join("Dockerfile.prebuilt");
            let arguments: [&OsStr; 9] = [
                "build".as_ref(),
                "--quiet".as_ref(),
                "--file".as_ref(),
                file.as_ref(),
                "--target".as_ref(),
                name.as_ref(),
                "--tag".as_ref(),
                &std::ffi::OsString::from(format!("outrigger/{name}:{TAG}")),
                context.as_ref(),
            ];
            self.docker(arguments).await.with_context(|| format!("build the image of {name}"))?;
        }
        Ok(())
    }

    /// A folder of the run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    /// Where the engine keeps a volume.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.scratch.file("data").join("volumes").join(name).join("_data")
    }

    /// A command that finds this engine and nothing of another one.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"COMPOSE_") || name.as_encoded_bytes().starts_with(b"DOCKER_") {
                command.env_remove(name);
            }
        }
        command
            .env("DOCKER_HOST", format!("unix://{}", self.scratch.file("socket").display()))
            .env("DOCKER_CONFIG", self.scratch.file("client"))
            // The other builder is a plugin that Debian does not have.
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `docker`; returns what it prints.
    pub(crate) async fn docker<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = self.command("docker");
        command.args(arguments);
        run(command).await
    }

    /// What the engine knows about a container, an image or a network.
    pub(crate) async fn inspect(&self, name: &str) -> Result<serde_json::Value> {
        let text = self.docker(["inspect", name]).await?;
        let mut all: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        ensure!(all.len() == 1, "{} things are called {name}", all.len());
        Ok(all.remove(0))
    }
}

/// Where the binaries are that need nothing but a kernel.
pub(crate) fn static_binaries() -> PathBuf {
    let standard = || binaries::repository().join("target/x86_64-unknown-linux-gnu/release").into_os_string();
    PathBuf::from(std::env::var_os(STATIC_VARIABLE).unwrap_or_else(standard))
}

fn cgroup_parent(scratch: &Scratch) -> String {
    scratch.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Runs a command to its end; returns what it prints.
///
/// # Errors
/// It fails; the error has what it said.
pub(crate) async fn run(command: Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std().get_program());
    let said = try_run(command).await?;
    ensure!(said.code == Some(0), "{shown} ended with {:?}: {}{}", said.code, said.out, said.err.trim());
    Ok(said.out)
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// It cannot be run, or does not end.
pub(crate) async fn try_run(mut command: Command) -> Result<Said> {
    let shown = format!("{:?}", command.as_std().get_program());
    let output = tokio::time::timeout(COMMAND_DEADLINE, command.output());
    let output =
        output.await.with_context(|| format!("{shown} does not end"))?.with_context(|| format!("run {shown}"))?;
    Ok(Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
