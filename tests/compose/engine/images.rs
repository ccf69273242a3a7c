//! What the images hold, and how large they are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kit_workbench::Digest;
use outrigger_tests::binaries;
use outrigger_tests::experiment::{Outcome, Trial};

use crate::engine::{COMMAND_LINE, TAG, engine, run, static_binaries, try_run};
use crate::site::TRACKER;

/// Of an image, everything included.
const IMAGE_LIMIT: u64 = 15 * 1024 * 1024;
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
        tells_nothing_of_its_builder(&static_binaries().join(daemon)).await?;
        let built = Digest::of(&std::fs::read(static_binaries().join(daemon))?);
        let held = Digest::of(&std::fs::read(folder.join(binary.trim_start_matches('/')))?);
        ensure!(built == held, "{image} does not hold the binary that was built");

        let size = seen["Size"].as_u64().context("no size")?;
        notes.push(format!("{daemon} {:.2} MiB", size as f64 / 1_048_576.0));
        if size > IMAGE_LIMIT {
            too_large.push(daemon);
        }
    }
    ensure!(too_large.is_empty(), "{too_large:?} larger than 15 MiB: {}", notes.join(", "));
    Ok(Outcome::new(notes.len(), notes.join(", ")))
}

/// A binary names sources by crate and version: with paths of the machine that has built it, another one would build another.
async fn tells_nothing_of_its_builder(binary: &Path) -> Result<()> {
    let repository = binaries::repository();
    let repository = repository.to_str().context("a path in UTF-8")?;
    for path in [repository, "/.cargo/", "/registry/src/", "/release/build/"] {
        let mut command = tokio::process::Command::new("grep");
        command.args(["--text", "--count", "--fixed-strings", "--regexp", path]).arg(binary);
        let said = try_run(command).await?;
        ensure!(
            said.code == Some(1),
            "{} has the path {path} in it {} times: it was not built by cargo static with .cargo/rustc-of-anywhere, or of \
             crates that were built before that was there (cargo does not see the difference: remove the folder \
             target/x86_64-unknown-linux-gnu)",
            binary.display(),
            said.out.trim()
        );
    }
    Ok(())
}

/// T22: the same binaries give the same images, whoever builds them, where, when, and with which umask: the same layers byte for
/// byte, and the same of everything that is said of them. (Only the time of building differs, which is in the image's own id.)
pub(crate) async fn an_image_built_twice_is_the_same(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let folder = engine.file("of-somebody-else");
    let again = r#"
        umask 077
        mkdir -p "$1/binaries"
        for name in $3; do cp "$2/$name" "$1/binaries/$name" && chmod 700 "$1/binaries/$name"; done
        prebuilt=$PWD/compose/Dockerfile.prebuilt
        compose/context "$1/context" "$1/binaries"
        cd "$1/context"
        for name in $4; do
            # All that the image is made of, and not what the others are: this builder would make every stage before it.
            awk -v name="$name" '/^FROM / { is_it = $4 == name } is_it' "$prebuilt" >Dockerfile
            tar -cf - Dockerfile "$name.tar" | docker build --quiet --no-cache --tag "again/$name" -
        done
    "#;
    let all = [&binaries::DAEMONS[..], &[binaries::SEEDER, COMMAND_LINE]].concat();
    // One with a folder for its journal, and one without.
    let names = [TRACKER, binaries::SEEDER];
    let mut command = engine.command("bash");
    command.args(["-ec", again, "bash"]).arg(&folder).arg(static_binaries()).args([all.join(" "), names.join(" ")]);
    command.current_dir(binaries::repository()).env("TZ", "Pacific/Auckland").env("LC_ALL", "C.UTF-8");
    run(command).await?;
    for name in names {
        let (first, second) = (
            engine.inspect(&format!("outrigger/{name}:{TAG}")).await?,
            engine.inspect(&format!("again/{name}")).await?,
        );
        ensure!(first["Id"] != second["Id"], "the image of {name} was not built again");
        let (layers, again) = (&first["RootFS"]["Layers"], &second["RootFS"]["Layers"]);
        ensure!(layers == again, "{name} has the layers {layers}, and the second time {again}");
        let said = |image: &serde_json::Value| {
            let mut config = image["Config"].clone();
            // The builder's own step before the last one.
            config["Image"].take();
            config
        };
        ensure!(said(&first) == said(&second), "{name}: {} is not {}", said(&first), said(&second));
    }
    for name in &all {
        let archive = format!("{name}.tar");
        let archive = |folder: PathBuf| -> Result<Digest> { Ok(Digest::of(&std::fs::read(folder.join(&archive))?)) };
        ensure!(archive(engine.file("context"))? == archive(folder.join("context"))?, "{name}.tar is another one");
    }
    Ok(Outcome::new(all.len(), ""))
}

/// The binary outside, asked for its version.
fn engine_command(daemon: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(static_binaries().join(daemon));
    command.arg("--version");
    command
}
