//! `promtool`, `amtool` and the servers, as Debian has them.

use std::path::Path;
use std::process::{Command, Output};

use outrigger_tests::binaries::repository;

/// Runs a tool in the repository; what it said, whatever it ended with.
pub(crate) fn run(tool: &str, arguments: &[&str]) -> (bool, String) {
    run_in(repository(), tool, arguments)
}

/// The same in another folder.
pub(crate) fn run_in(folder: &Path, tool: &str, arguments: &[&str]) -> (bool, String) {
    let output: Output = Command::new(tool)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}; Debian: prometheus, prometheus-alertmanager (./test monitoring)"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}
