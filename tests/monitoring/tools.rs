//! `promtool` and `amtool`, as Debian has them.

use std::process::Command;

use outrigger_tests::binaries::repository;

/// Runs a tool in the repository: whether it is content, and what it said.
pub(crate) fn run(tool: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(tool).args(arguments).current_dir(repository()).output().unwrap_or_else(|error| {
        panic!("{tool}: {error}; Debian: prometheus, prometheus-alertmanager (./test monitoring)")
    });
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}
