//! `compose/sbom`: what it writes names what the daemon is made of.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use kit_workbench::scratch::Scratch;
use outrigger_tests::binaries::repository;
use serde_json::Value;

use crate::combinations::skip;

const DAEMON: &str = "lago-webhook-processor";

/// The crates of the daemon's normal dependencies on the platform of the images, as cargo says: name and version.
fn built_in() -> BTreeSet<(String, String)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(repository()).args(["tree", "--locked", "--offline", "-p", DAEMON, "--edges", "normal"]);
    cargo.args(["--target", "x86_64-unknown-linux-gnu", "--prefix", "none", "--format", "{p}"]);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let of = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
    };
    text.lines().filter_map(of).collect()
}

#[test]
fn the_bill_of_materials_names_every_crate_and_its_licence() {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let Some(tools) = cache.filter(|cache| cache.join("outrigger-tools/bin/cargo-cyclonedx").exists()) else {
        return skip("cargo-cyclonedx is not there; compose/sbom --install installs it");
    };
    let out = Scratch::new("sbom").unwrap();
    let write = || {
        let mut sbom = Command::new(repository().join("compose/sbom"));
        let output = sbom.arg(DAEMON).env("SBOM_DIR", out.path()).env("XDG_CACHE_HOME", &tools).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(out.file(&format!("{DAEMON}.cdx.json"))).unwrap()
    };

    let written = write();

    assert_eq!(written, write(), "the same commit gives another file");
    assert!(!written.contains(repository().to_str().unwrap()), "it tells where it was built");
    let bill: Value = serde_json::from_str(&written).unwrap();
    assert_eq!((bill["bomFormat"].as_str(), bill["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
    assert_eq!(bill["metadata"]["component"]["name"], DAEMON);
    assert!(
        bill["metadata"]["timestamp"].as_str().is_some_and(|time| time.len() == 20),
        "{}",
        bill["metadata"]["timestamp"]
    );
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let components = bill["components"].as_array().unwrap();
    let listed: BTreeSet<_> =
        components.iter().map(|crate_| (text(&crate_["name"]), text(&crate_["version"]))).collect();
    let mut expected = built_in();
    expected.retain(|(name, _)| name != DAEMON);
    assert!(expected.len() > 100, "cargo tree says too little: {expected:?}");
    let missing: Vec<_> = expected.difference(&listed).collect();
    assert!(missing.is_empty(), "not in the bill of materials: {missing:?}");
    let licences = fs::read_to_string(out.file(&format!("{DAEMON}.licences.txt"))).unwrap();
    let unlisted: Vec<_> =
        expected.iter().filter(|(name, version)| !licences.contains(&format!("{name}@{version}"))).collect();
    assert!(unlisted.is_empty(), "without a licence: {unlisted:?}");
    // Nothing is left beside the manifests.
    let status =
        Command::new("git").args(["status", "--short", "sidecars"]).current_dir(repository()).output().unwrap();
    assert!(!String::from_utf8_lossy(&status.stdout).contains("outrigger-sbom"));
}
