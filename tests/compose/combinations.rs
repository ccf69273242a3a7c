//! What others say of the files: docker-compose of every documented combination, and PyPI's compose-lint of every file.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kit_workbench::scratch::Scratch;
use outrigger_tests::binaries::repository;
use serde_json::{Map, Value};

use crate::project::{self, File};

/// Name of the variable that says where the Python environment is: `./test compose` makes it.
const ENVIRONMENT: &str = "OUTRIGGER_COMPOSE_VENV";
/// Pages that name combinations, as `COMPOSE_FILE=a.yml:b.yml`.
const PAGES: &[&str] = &["docs/compose", "compose/.env.example"];

/// Says so where a test cannot look; past what the test harness would keep to itself.
pub(crate) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `compose/` and `config/` as an operator has them, with an `.env` whose secrets are made.
fn site(fill: bool) -> Scratch {
    let site = Scratch::new("site").unwrap();
    for folder in ["compose", "config"] {
        let copied = Command::new("cp").arg("-r").arg(repository().join(folder)).arg(site.path()).status().unwrap();
        assert!(copied.success());
    }
    let compose = site.file("compose");
    fs::copy(compose.join(".env.example"), compose.join(".env")).unwrap();
    for line in project::read("secrets/generated").lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.split_whitespace().next() {
            let _ = fs::remove_file(compose.join("secrets").join(name));
            fs::write(compose.join("secrets").join(name), "5ec4e7".repeat(10)).unwrap();
        }
    }
    if fill {
        let output = Command::new(compose.join("fill-env")).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    site
}

/// Asks docker-compose what a combination comes to. `None` where it is not installed.
fn config(site: &Scratch, combination: &str, variables: &[(&str, &str)]) -> Option<Output> {
    let mut command = Command::new("docker-compose");
    command.arg("config").current_dir(site.file("compose")).env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", site.path());
    command.env("COMPOSE_FILE", combination).envs(variables.iter().copied());
    command.output().ok()
}

/// The combinations that the pages name, each with where it stands.
fn documented() -> Vec<(String, PathBuf)> {
    let mut pages = Vec::new();
    for page in PAGES.iter().map(|page| repository().join(page)) {
        if page.is_dir() {
            pages.extend(fs::read_dir(page).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            pages.push(page);
        }
    }
    let mut found = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for (at, name) in text.match_indices("COMPOSE_FILE=") {
            let rest = &text[at + name.len()..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.:/".contains(c)).unwrap_or(rest.len());
            if rest[..end].contains(".yml") {
                found.push((rest[..end].to_owned(), page.clone()));
            }
        }
    }
    found
}

#[test]
fn every_documented_combination_is_what_docker_compose_takes() {
    let site = site(true);
    // What only an operator can know.
    let variables = [("TEMPORAL_ADDRESS", "example.tmprl.cloud:7233"), ("TEMPORAL_API_KEY", "key")];
    let mut seen = BTreeSet::new();
    for (combination, page) in documented() {
        seen.extend(combination.split(':').map(str::to_owned));
        let page = page.strip_prefix(repository()).unwrap().display().to_string();
        if let Some(missing) = combination.split(':').find(|name| !project::folder().join(name).exists()) {
            skip(&format!("{page} names compose/{missing}, which is not there"));
            continue;
        }
        let Some(output) = config(&site, &combination, &variables) else {
            return skip(
                "docker-compose is not installed (Debian: docker-compose); no compose file is held against it",
            );
        };
        assert!(output.status.success(), "{page}: COMPOSE_FILE={combination}\n{}", said(&output));
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(!complaints.to_lowercase().contains("warn"), "{page}: COMPOSE_FILE={combination}\n{complaints}");
        let merged: Map<String, Value> = serde_saphyr::from_str(&String::from_utf8_lossy(&output.stdout)).unwrap();
        let services = merged["services"].as_object().unwrap();
        for (name, service) in services {
            assert!(
                service["image"].as_str().is_some_and(|image| !image.ends_with(':')),
                "{combination}: {name} has no image"
            );
            assert!(
                !service["mem_limit"].is_null() && !service["pids_limit"].is_null(),
                "{combination}: {name} has no limits"
            );
        }
        assert_eq!(services.contains_key("lago-worker"), services.contains_key("lago-clock"), "{combination}");
    }
    for name in project::names() {
        assert!(seen.contains(&name), "no page names a combination with compose/{name}");
    }
}

#[test]
fn a_secret_that_is_not_made_yet_is_asked_for_by_name() {
    let site = site(false);

    let Some(output) = config(&site, "infrastructure.yml", &[]) else {
        return skip("docker-compose is not installed; what it says of a missing secret is not looked at");
    };

    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("REDIS_PASSWORD") && said.contains("./up"), "{said}");
}

/// Where there is no gateway, none may be made up: each event would wait for it for ever, and fill the disk.
#[test]
fn no_gateway_is_none() {
    let site = site(true);
    for (given, expected) in [("", ""), ("http://gateway.example", "http://gateway.example")] {
        let Some(output) = config(&site, "sidecars.yml", &[("BRAIN_GATEWAY_URL", given)]) else {
            return skip("docker-compose is not installed; an empty BRAIN_GATEWAY_URL is not looked at");
        };
        let merged: Map<String, Value> = serde_saphyr::from_str(&String::from_utf8_lossy(&output.stdout)).unwrap();
        let mut seen = 0;
        for (name, service) in merged["services"].as_object().unwrap() {
            if let Some(url) = service["environment"].get("BRAIN_GATEWAY_URL") {
                assert_eq!(url.as_str().unwrap_or(""), expected, "{name}");
                seen += 1;
            }
        }
        assert_eq!(seen, 4);
    }
}

/// A managed Redis with TLS is spoken to with TLS by everybody who speaks to it.
#[test]
fn redis_with_tls_is_for_all_of_them() {
    let site = site(true);
    let everybody = "managed.yml:lago.yml:shared-lago.yml:authentik.yml:monitoring.yml";
    let given = [
        ("POSTGRES_HOST", "db.example.com"),
        ("REDIS_HOST", "redis.example.com"),
        ("REDIS_SCHEME", "rediss"),
        ("AUTHENTIK_REDIS_TLS", "true"),
    ];
    let Some(output) = config(&site, everybody, &given) else {
        return skip("docker-compose is not installed; a Redis with TLS is not looked at");
    };
    assert!(output.status.success(), "{}", said(&output));
    let merged: Map<String, Value> = serde_saphyr::from_str(&String::from_utf8_lossy(&output.stdout)).unwrap();
    let mut seen = BTreeSet::new();
    for (name, service) in merged["services"].as_object().unwrap() {
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            assert!(!value.contains("redis://"), "{name}: {variable}={value}");
            if value.starts_with("rediss://redis.example.com:6379")
                || variable == "AUTHENTIK_REDIS__TLS" && value == "true"
            {
                seen.insert(name.as_str());
            }
        }
    }
    let expected = [
        "authentik-server",
        "authentik-worker",
        "lago-api",
        "lago-clock",
        "lago-migrate",
        "lago-worker",
        "redis-exporter",
    ];
    assert_eq!(seen, BTreeSet::from(expected));
}

/// Runs compose-lint on a file; any finding that the configuration does not name fails.
fn compose_lint(venv: &Path, file: &Path, configuration: &str) -> Output {
    let mut command = Command::new(venv.join("bin/compose-lint"));
    command.args(["check", "--no-merge-overrides", "--no-env", "--fail-on", "low", "--skip-suppressed", "-q"]);
    command.arg("--config").arg(project::folder().join(configuration)).arg(file);
    command.env_clear().env("PATH", "/usr/bin:/bin").output().unwrap()
}

#[test]
fn compose_lint_finds_nothing_that_has_no_reason() {
    let Some(venv) = std::env::var_os(ENVIRONMENT).map(PathBuf::from) else {
        return skip("compose-lint is not there; ./test compose installs it");
    };
    for name in project::names() {
        let file = File::parse(&name, &project::read(&name)).unwrap();
        // Files that only add to services of other files.
        let defines = file.section("services").values().any(|service| service.get("image").is_some());
        let configuration = if defines { ".compose-lint.yml" } else { ".compose-lint-overlays.yml" };
        let output = compose_lint(&venv, &project::folder().join(&name), configuration);
        assert!(output.status.success(), "compose/{name}:\n{}", said(&output));
    }

    // And it does find what is wrong.
    let wrong = Scratch::new("wrong").unwrap();
    let file =
        wrong.write("wrong.yml", project::read("temporal.yml").replace("cap_drop: [ALL]", "privileged: true")).unwrap();
    let output = compose_lint(&venv, &file, ".compose-lint.yml");
    assert!(!output.status.success() && said(&output).contains("CL-0002"), "{}", said(&output));
}

#[test]
fn every_exception_of_compose_lint_has_a_reason_and_a_service() {
    let files: Vec<_> = project::names().iter().map(|name| File::parse(name, &project::read(name)).unwrap()).collect();
    let services: BTreeSet<_> = files.iter().flat_map(|file| file.section("services").into_keys()).collect();
    for configuration in [".compose-lint.yml", ".compose-lint-overlays.yml"] {
        let rules: Map<String, Value> = serde_saphyr::from_str(&project::read(configuration)).unwrap();
        for (rule, of) in rules["rules"].as_object().unwrap() {
            let reasons = of["exclude_services"].as_object();
            assert!(reasons.is_some() || of["reason"].is_string(), "{configuration}: {rule} has no reason");
            for (service, reason) in reasons.into_iter().flatten() {
                assert!(
                    reason.as_str().is_some_and(|reason| reason.len() > 10),
                    "{configuration}: {rule} of {service} has no reason"
                );
                if !services.contains(service.as_str()) && !project::folder().join("sidecars.yml").exists() {
                    skip(&format!("compose/sidecars.yml is not there; is {service} of it?"));
                    continue;
                }
                assert!(
                    services.contains(service.as_str()),
                    "{configuration}: {rule} names {service}, which there is not"
                );
            }
        }
    }
}
