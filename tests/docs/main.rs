//! The documents against the code: what they name must exist, and what they tell people to type must do what they say.

#![allow(clippy::unwrap_used)]

mod walkthrough;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use outrigger_tests::binaries::repository;

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files with this ending, build output and hidden folders aside.
fn files(ending: &str) -> Vec<PathBuf> {
    fn collect(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                collect(&path, ending, found);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(repository(), ending, &mut found);
    found
}

/// What stands between single backticks in a line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Crates and binaries of the workspace, by name.
fn packages() -> BTreeSet<String> {
    let manifests = files("Cargo.toml").into_iter().filter(|path| path.parent() != Some(repository()));
    manifests
        .map(|path| std::fs::read_to_string(path).unwrap())
        .map(|text| {
            text.lines().find_map(|line| line.strip_prefix("name = \"")).unwrap().trim_end_matches('"').to_owned()
        })
        .collect()
}

/// A cell of proofs names functions and, after them, the file they are in: `` `f`, `g` (`path`) ``.
#[test]
fn every_promise_names_tests_that_exist() {
    let text = read("docs/guarantees.md");
    let promises = text.split("## Promises").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut proven = 0;
    let mut wrong = Vec::new();
    for line in promises.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Promise ")) {
        let cell = line.trim_end_matches('|').trim_end().rsplit(" | ").next().unwrap();
        let mut functions = Vec::new();
        let mut found = 0;
        for word in quoted(cell) {
            if !word.contains('/') && !word.ends_with(".rs") {
                functions.push(word);
                continue;
            }
            let Ok(source) = std::fs::read_to_string(repository().join(word)) else {
                wrong.push(format!("{word} does not exist"));
                continue;
            };
            for function in functions.drain(..) {
                found += 1;
                if !source.contains(&format!("fn {function}(")) {
                    wrong.push(format!("{word} has no test {function}"));
                }
            }
        }
        if found == 0 || !functions.is_empty() {
            wrong.push(format!("no proof, or no file for it: {line}"));
        }
        proven += 1;
    }
    assert!(proven > 20, "only {proven} promises were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What looks like one of our crates, or like a path into one, is one.
#[test]
fn what_the_architecture_names_exists() {
    let text = read("docs/ARCHITECTURE.md");
    let packages = packages();
    let mut wrong = BTreeSet::new();
    let (mut crates, mut paths) = (0, 0);
    for word in text.lines().flat_map(quoted) {
        let ours =
            word == "kit" || word.starts_with("kit-") || word.starts_with("outrigger") || packages.contains(word);
        let plain = word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        let template = word.contains('<') || word.contains('{') || word.contains('…');
        if ours && plain {
            crates += 1;
            // `kit-<party>` and the like stand for crates to come.
            if !packages.contains(word) && !word.ends_with('-') {
                wrong.insert(word.to_owned());
            }
        } else if !template && packages.iter().any(|name| word.starts_with(&format!("{name}/"))) {
            paths += 1;
            if !repository().join("sidecars").join(word).exists() {
                wrong.insert(word.to_owned());
            }
        }
    }
    assert!(crates > 5 && paths > 5, "{crates} crates and {paths} paths were found");
    assert!(wrong.is_empty(), "docs/ARCHITECTURE.md names what is not there: {wrong:?}");
    for name in packages.iter().filter(|name| **name != "outrigger-tests") {
        assert!(text.contains(name.as_str()), "docs/ARCHITECTURE.md does not mention {name}");
    }
}

#[test]
fn every_mutant_applies_is_listed_with_what_catches_it_and_was_caught() {
    let (page, ledger) = (read("docs/guarantees.md"), read("tests/mutants/ledger.jsonl"));
    let mut mutants = 0;
    for path in files(".patch") {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut git = std::process::Command::new("git");
        let applies = git.current_dir(repository()).args(["apply", "--check"]).arg(&path).output().unwrap();
        assert!(applies.status.success(), "{name}: {}", String::from_utf8_lossy(&applies.stderr));
        let experiment = text.lines().next().and_then(|line| line.strip_prefix("# caught by: ")).unwrap();
        let listed = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        assert!(listed.is_some_and(|line| line.contains(experiment)), "{name} is not listed with {experiment}");
        let caught = |line: &&str| line.contains(&format!("\"{name}\"")) && line.contains("\"caught\"");
        assert!(ledger.lines().any(|line| caught(&line)), "{name} was never seen caught");
        mutants += 1;
    }
    assert!(mutants > 5, "{mutants} mutants");
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut links = 0;
    for path in files(".md") {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut fenced = false;
        for line in text.lines() {
            fenced ^= line.trim_start().starts_with("```");
            // Code, fenced or between backticks, holds no links.
            let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
            for rest in prose.split("](").skip(1).filter(|_| !fenced) {
                let target = rest.split(')').next().unwrap().split('#').next().unwrap();
                if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                links += 1;
                if !path.parent().unwrap().join(target).exists() {
                    wrong.push(format!("{}: {target}", path.display()));
                }
            }
        }
    }
    assert!(links > 10, "only {links} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_adr_is_listed_and_numbered_once() {
    let mut numbers = BTreeSet::new();
    for path in files(".md").into_iter().filter(|path| path.parent().is_some_and(|folder| folder.ends_with("docs/adr")))
    {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name != "README.md" {
            assert!(name[..4].bytes().all(|b| b.is_ascii_digit()), "{name} has no number");
            assert!(numbers.insert(name[..4].to_owned()), "{name}: the number is taken");
        }
    }
    assert!(numbers.len() >= 5, "{numbers:?}");
}

/// The two commands that do everything.
#[test]
fn the_readme_has_the_two_commands() {
    let text = read("README.md");
    for command in ["cargo run --release -p outrigger -- demo", "./test"] {
        assert!(text.contains(command), "README.md does not mention {command}");
    }
    assert!(read(".ci/run").contains("/test"), ".ci/run does not call ./test");
}

/// Long files hide things. Tests at the end do not count.
#[test]
fn no_production_file_is_longer_than_five_hundred_lines() {
    let mut long = Vec::new();
    for path in files(".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        let is_test = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        if lines > 500 && !is_test {
            long.push(format!("{}: {lines}", path.display()));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}
