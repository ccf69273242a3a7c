//! The run moves into namespaces of its own: what an engine does to a machine's network, firewall and mounts happens
//! there, and everything that it has started ends with the run, however that ends.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use outrigger_tests::experiment::say;

/// Says, to the process inside, that it is inside.
const INSIDE_VARIABLE: &str = "OUTRIGGER_ENGINE_INSIDE";
/// Name of the variable that makes a machine without an engine a failure.
pub(crate) const REQUIRE_VARIABLE: &str = "OUTRIGGER_REQUIRE_ENGINE";
/// A network, mounts and processes of our own; the last end with the first of them.
const UNSHARE: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
/// Commands that are needed, and the Debian packages that have them.
const COMMANDS: [(&str, &str); 9] = [
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("docker-compose", "docker-compose"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

/// Whether an engine must be there.
pub(crate) fn is_required() -> bool {
    std::env::var(REQUIRE_VARIABLE).is_ok_and(|value| !value.is_empty() && value != "0")
}

/// `None` inside. Outside the run is done inside, and this is its exit code; where that is not possible, all of the
/// experiments count as skipped.
pub(crate) fn enter(experiments: usize) -> Option<ExitCode> {
    let has = |argument: &str| std::env::args().any(|given| given == argument);
    if std::env::var_os(INSIDE_VARIABLE).is_some() || has("--list") {
        return None;
    }
    if let Some(reason) = obstacle() {
        say(&format!("no container engine can run here: {reason}\n"));
        say(&format!("SKIPPED: {experiments} experiments in a container engine\n"));
        if is_required() {
            say(&format!("{REQUIRE_VARIABLE} is set, so this is a failure\n"));
            say(&format!(
                "test result: FAILED. 0 passed; {experiments} failed; 0 ignored; 0 measured; 0 filtered out\n"
            ));
            return Some(ExitCode::FAILURE);
        }
        say(&format!("test result: ok. 0 passed; 0 failed; {experiments} ignored; 0 measured; 0 filtered out\n"));
        return Some(ExitCode::SUCCESS);
    }
    let own = std::env::current_exe().unwrap_or_default();
    // Killed with us, whoever kills us. A shell in between brings the loopback up and makes way.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(UNSHARE)
        .args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(INSIDE_VARIABLE, "1")
        .status();
    Some(match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("unshare cannot be run: {error}\n"));
            ExitCode::FAILURE
        }
    })
}

/// Why no engine can run here.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it takes root".to_owned());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let is_there = |command: &str| path.split(':').any(|folder| Path::new(folder).join(command).is_file());
    if let Some((command, package)) = COMMANDS.iter().find(|(command, _)| !is_there(command)) {
        return Some(format!("{command} is missing (Debian: {package})"));
    }
    let tried = Command::new("unshare").args(UNSHARE).arg("true").stdin(Stdio::null()).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}
