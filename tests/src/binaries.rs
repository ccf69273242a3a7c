//! Where the binaries under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// Name of the variable that says where the binaries are; `./test` sets it to its release build.
pub const DIRECTORY_VARIABLE: &str = "OUTRIGGER_BIN_DIR";

/// Every daemon of the repository, by the name of its binary.
pub const DAEMONS: [&str; 4] =
    ["lago-webhook-processor", "lago-usage-tracker", "authentik-event-forwarder", "temporal-event-bridge"];

/// What runs once and ends: binary and package.
pub const SEEDER: &str = "lago-seeder";

/// The command line's binary and package.
const COMMAND_LINE: &str = "outrigger";

/// The top of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in a folder of the repository")
}

/// The path of a daemon's binary.
///
/// Where [`DIRECTORY_VARIABLE`] is not set, the one beside this test is used, and built first: a test
/// of yesterday's binary proves nothing.
///
/// # Errors
/// The binary is not there, or cannot be built.
pub fn daemon(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    binary(name, &DAEMONS, &BUILT)
}

/// The path of a daemon's binary that runs with these variables: what `LD_PRELOAD` names takes no effect in a static
/// binary, so that a dynamic one beside this test is used for it, and built first.
///
/// # Errors
/// The binary is not there, or cannot be built.
pub fn daemon_with(name: &str, variables: &[(String, String)]) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if variables.iter().any(|(name, _)| name == "LD_PRELOAD") {
        return beside_this_test(name, &DAEMONS, &BUILT);
    }
    daemon(name)
}

/// The path of the seeder's binary; found and built as [`daemon`]'s.
///
/// # Errors
/// The binary is not there, or cannot be built.
pub fn seeder() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    binary(SEEDER, &[SEEDER], &BUILT)
}

/// The path of the command line's binary; found and built as [`daemon`]'s.
///
/// # Errors
/// The binary is not there, or cannot be built.
pub fn command_line() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    binary(COMMAND_LINE, &[COMMAND_LINE], &BUILT)
}

fn binary(name: &str, packages: &[&str], built: &OnceLock<Result<PathBuf, String>>) -> Result<PathBuf> {
    match std::env::var_os(DIRECTORY_VARIABLE) {
        Some(directory) => existing(&repository().join(directory), name),
        None => beside_this_test(name, packages, built),
    }
}

fn beside_this_test(name: &str, packages: &[&str], built: &OnceLock<Result<PathBuf, String>>) -> Result<PathBuf> {
    let build = || build(packages).map_err(|error| format!("{error:#}"));
    let directory = built.get_or_init(build).clone().map_err(anyhow::Error::msg)?;
    existing(&directory, name)
}

fn existing(directory: &Path, name: &str) -> Result<PathBuf> {
    let binary = directory.join(name);
    ensure!(binary.is_file(), "{} is missing: cargo build -p {name}, or set {DIRECTORY_VARIABLE}", binary.display());
    Ok(binary)
}

fn build(packages: &[&str]) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running test")?;
    // target/<profile>/deps/<test>
    let profile = own.ancestors().nth(2).context("the test lies outside a target directory")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repository()).args(["build", "--quiet", "--locked"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    for name in packages {
        cargo.args(["-p", name]);
    }
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "cargo build of {packages:?} ended with {status}");
    Ok(profile.to_owned())
}
