//! What the images hold, and how large they are.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use kit_workbench::Digest;
use outrigger_tests::binaries;
use outrigger_tests::experiment::{Outcome, Trial};

use crate::engine::{TAG, engine, run, static_binaries};

/// Of an image, everything included.
const IMAGE_LIMIT: u64 = 15 * 1024 * 1024;
/// It speaks gRPC beside all that the others speak (ADR 0024).
const BRIDGE_LIMIT: u64 = 16 * 1024 * 1024;
/// What the engine puts into every container by itself.
const OF_THE_ENGINE: [&str; 12] = [
    ".dockerenv",
    "dev/",
    "dev/console",
    "dev/pts/",
    "dev/shm/",
    "etc/",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc/",
    "sys/",
];
/// What every image holds beside its binary; a mode for everybody, and the owner of the state.
const OURS: [&str; 8] = [
    "etc/group",
    "etc/passwd",
    "etc/ssl/",
    "etc/ssl/certs/",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/",
    "usr/bin/",
    "",
];
/// Where a daemon's journal goes.
const STATE: [&str; 3] = ["var/", "var/lib/", "var/lib/outrigger/"];

/// T22, as far as an image can show it: it holds the binary that was built from the locked sources, certificates and a
/// name for its user; nothing is set-uid; labels say what it is; and it is small.
pub(crate) async fn an_image_is_one_static_binary_and_small(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let mut notes = Vec::new();
    let mut too_large = Vec::new();
    for daemon in binaries::DAEMONS.into_iter().chain([binaries::SEEDER]) {
        let is_daemon = daemon != binaries::SEEDER;
        let image = format!("outrigger/{daemon}:{TAG}");
        let seen = engine.inspect(&image).await?;
        let config = &seen["Config"];
        let binary = format!("/usr/bin/{daemon}");
        ensure!(config["User"] == "65532:65532", "{image} runs as {}", config["User"]);
        ensure!(config["Entrypoint"] == serde_json::json!([binary]), "{image} starts {}", config["Entrypoint"]);
        let health = if is_daemon { serde_json::json!(["CMD", binary, "health"]) } else { serde_json::Value::Null };
        ensure!(config["Healthcheck"]["Test"] == health, "{image}: health check");
        let labels = &config["Labels"];
        let version = run(engine_command(daemon)).await?;
        ensure!(labels["org.opencontainers.image.licenses"] == "Apache-2.0", "{image} has the labels {labels}");
        ensure!(labels["org.opencontainers.image.title"] == daemon, "{image} has the labels {labels}");
        let labelled = labels["org.opencontainers.image.version"].as_str().context("no version")?;
        ensure!(version.trim() == format!("{daemon} {labelled}"), "{image} is labelled {labelled} and says {version}");

        let folder = engine.file(&format!("files-{daemon}"));
        std::fs::create_dir(&folder)?;
        let container = engine.docker(["create", &image]).await?;
        let unpack = "docker export \"$1\" | tar -x -C \"$2\" && docker rm \"$1\" >/dev/null && \
                      docker image save \"$3\" | wc -c";
        let mut command = engine.command("sh");
        command.args(["-ec", unpack, "sh", container.trim()]).arg(&folder).arg(&image);
        run(command).await?;
        let mut list = engine.command("find");
        list.arg(&folder).args(["-printf", "%P%y %m %U %s\n"]);
        let found = run(list).await?;
        let mut names = BTreeSet::new();
        for line in found.lines() {
            let [name, mode, uid, _size] =
                line.rsplitn(4, ' ').collect::<Vec<_>>()[..].iter().rev().copied().collect::<Vec<_>>()[..]
            else {
                anyhow::bail!("find says {line}");
            };
            let (name, kind) = name.split_at(name.len() - 1);
            let name = if kind == "d" && !name.is_empty() { format!("{name}/") } else { name.to_owned() };
            if OF_THE_ENGINE.contains(&name.as_str()) {
                continue;
            }
            ensure!(mode.len() == 3, "{image}: {name} has the mode {mode}");
            let owner = if name == "var/lib/outrigger/" { "65532" } else { "0" };
            ensure!(uid == owner, "{image}: {name} belongs to {uid}");
            names.insert(name);
        }
        let mut expected: BTreeSet<String> = OURS.iter().map(|name| (*name).to_owned()).collect();
        expected.extend(STATE.iter().filter(|_| is_daemon).map(|name| (*name).to_owned()));
        expected.insert(binary.trim_start_matches('/').to_owned());
        ensure!(names == expected, "{image} holds {:?}", names.symmetric_difference(&expected).collect::<Vec<_>>());
        let built = Digest::of(&std::fs::read(static_binaries().join(daemon))?);
        let held = Digest::of(&std::fs::read(folder.join(binary.trim_start_matches('/')))?);
        ensure!(built == held, "{image} does not hold the binary that was built");

        let size = seen["Size"].as_u64().context("no size")?;
        notes.push(format!("{daemon} {:.2} MiB", size as f64 / 1_048_576.0));
        if size > if daemon == "temporal-event-bridge" { BRIDGE_LIMIT } else { IMAGE_LIMIT } {
            too_large.push(daemon);
        }
    }
    ensure!(too_large.is_empty(), "{too_large:?} larger than 15 MiB, or the bridge than 16: {}", notes.join(", "));
    Ok(Outcome::new(notes.len(), notes.join(", ")))
}

/// The binary outside, asked for its version.
fn engine_command(daemon: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(static_binaries().join(daemon));
    command.arg("--version");
    command
}
