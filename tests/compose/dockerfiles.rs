//! The two Dockerfiles: what is tested (`Dockerfile.prebuilt`) ends as what is published (`Dockerfile`), and both name the
//! version that the workspace has.

use outrigger_tests::binaries::{DAEMONS, SEEDER, repository};

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The stages that become images, by name. Where files come from is taken out: there it is a stage, here the context.
fn images(path: &str) -> Vec<(String, Vec<String>)> {
    let text = read(path);
    let mut images: Vec<(String, Vec<String>)> = Vec::new();
    let mut is_image = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(stage) = line.strip_prefix("FROM ") {
            is_image = stage.starts_with("scratch AS ");
            if is_image {
                images.push((stage.trim_start_matches("scratch AS ").to_owned(), Vec::new()));
            }
        } else if is_image && let Some((_, lines)) = images.last_mut() {
            lines.push(line.replace("--from=build ", "").replace("/image/", ""));
        }
    }
    images
}

#[test]
fn images_of_prebuilt_binaries_end_as_those_from_source() {
    let (published, tested) = (images("compose/Dockerfile"), images("compose/Dockerfile.prebuilt"));

    let names: Vec<&str> = published.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [&DAEMONS[..], &[SEEDER, "outrigger"]].concat();
    assert_eq!(names, expected, "a target for every daemon, the seeder and the command line");
    assert_eq!(published, tested);
}

#[test]
fn the_version_is_the_workspace_s_everywhere() {
    let version = env!("CARGO_PKG_VERSION");

    for path in ["compose/Dockerfile", "compose/Dockerfile.prebuilt"] {
        let wanted = format!("ARG VERSION={version}");
        let of_images = images(path).into_iter().filter(|(_, lines)| lines.contains(&wanted)).count();
        assert_eq!(of_images, DAEMONS.len() + 2, "{path}: {wanted}");
    }
    let example = read("compose/.env.example");
    assert!(example.lines().any(|line| line == format!("SIDECAR_TAG={version}")), "SIDECAR_TAG in .env.example");
    let overlay = read("compose/sidecars.yml");
    assert_eq!(overlay.matches(&format!("${{SIDECAR_TAG:-{version}}}")).count(), DAEMONS.len() + 2, "sidecars.yml");
}

/// What `cargo static` means is written once; the image's toolchain is the oldest that the workspace allows.
#[test]
fn images_are_built_from_locked_sources_with_the_workspace_s_toolchain() {
    let (file, manifest, alias) = (read("compose/Dockerfile"), read("Cargo.toml"), read(".cargo/config.toml"));

    assert!(alias.lines().any(|line| line.starts_with("static = ") && line.contains("\"--locked\"")), "{alias}");
    let builds: Vec<&str> = file.lines().filter(|line| line.contains("cargo ") && !line.starts_with('#')).collect();
    assert!(builds.iter().all(|line| line.contains("cargo static ")) && builds.len() == 2, "{builds:?}");
    let rust = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).expect("a rust-version");
    let rust = rust.trim_end_matches('"');
    assert!(file.contains(&format!("ARG RUST_IMAGE=docker.io/library/rust:{rust}.")), "rust-version {rust}");
}
