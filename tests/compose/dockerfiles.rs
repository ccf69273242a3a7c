//! The two Dockerfiles: what is tested (`Dockerfile.prebuilt`) ends as what is published (`Dockerfile`), and both name the
//! version that the workspace has.

use outrigger_tests::binaries::{DAEMONS, SEEDER, repository};

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A stage that becomes an image: its name, what it is filled with, and everything else that is said of it.
struct Image {
    name: String,
    filled: Vec<String>,
    said: Vec<String>,
}

/// The stages that become images.
fn images(path: &str) -> Vec<Image> {
    let text = read(path);
    let mut images: Vec<Image> = Vec::new();
    let mut is_image = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(stage) = line.strip_prefix("FROM ") {
            is_image = stage.starts_with("scratch AS ");
            if is_image {
                let name = stage.trim_start_matches("scratch AS ").to_owned();
                images.push(Image { name, filled: Vec::new(), said: Vec::new() });
            }
        } else if is_image && let Some(image) = images.last_mut() {
            let is_filling = line.starts_with("COPY ") || line.starts_with("ADD ");
            if is_filling { &mut image.filled } else { &mut image.said }.push(line.to_owned());
        }
    }
    images
}

/// What the archives of `compose/context` hold is looked at in the images themselves, by T22; the other file can only be read.
#[test]
fn images_of_prebuilt_binaries_end_as_those_from_source() {
    let (published, tested) = (images("compose/Dockerfile"), images("compose/Dockerfile.prebuilt"));

    let names: Vec<&str> = published.iter().map(|image| image.name.as_str()).collect();
    let expected = [&DAEMONS[..], &[SEEDER, "outrigger"]].concat();
    assert_eq!(names, expected, "a target for every daemon, the seeder and the command line");
    assert_eq!(names, tested.iter().map(|image| image.name.as_str()).collect::<Vec<_>>());
    for (published, tested) in published.iter().zip(&tested) {
        let name = &published.name;
        assert_eq!(published.said, tested.said, "{name}");
        assert_eq!(tested.filled, [format!("ADD {name}.tar /")]);
        let state = "COPY --from=build --chown=65532:65532 /image/state /var/lib/outrigger".to_owned();
        let mut expected = vec![
            "COPY --from=build /image/passwd /image/group /etc/".to_owned(),
            "COPY --from=build /image/ca-certificates.crt /etc/ssl/certs/".to_owned(),
        ];
        expected.extend(DAEMONS.contains(&name.as_str()).then_some(state));
        expected.push(format!("COPY --from=build /image/{name} /usr/bin/"));
        assert_eq!(published.filled, expected);
    }
}

#[test]
fn the_version_is_the_workspace_s_everywhere() {
    let version = env!("CARGO_PKG_VERSION");

    for path in ["compose/Dockerfile", "compose/Dockerfile.prebuilt"] {
        let wanted = format!("ARG VERSION={version}");
        let of_images = images(path).into_iter().filter(|image| image.said.contains(&wanted)).count();
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
