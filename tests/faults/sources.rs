//! What our own source must not hold.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use outrigger_tests::binaries::repository;
use outrigger_tests::experiment::{Outcome, Trial};

/// Whether a line of Rust, comments and texts left out, has this word.
fn has_word(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default().replace("\\\"", "");
    // Every other piece between quotes is text; a text over several lines is found too often, not too
    // seldom.
    let code: String = code.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|part| part == word)
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            files(&path, ending, found)?;
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    Ok(())
}

/// T23: the workspace forbids `unsafe`, every crate of it takes that over, nothing allows it again, and
/// the word does not occur.
pub(crate) async fn no_crate_of_ours_is_unsafe(_: Trial) -> Result<Outcome> {
    for (line, found) in [
        ("    unsafe { *pointer }", true),
        ("unsafe fn f() {}", true),
        ("let x = \"a\"; unsafe {}", true),
        ("// unsafe", false),
        ("let x = \"unsafe\";", false),
        ("#![forbid(unsafe_code)]", false),
    ] {
        ensure!(has_word(line, "unsafe") == found, "the search is wrong about {line:?}");
    }
    let root = repository();
    let workspace = std::fs::read_to_string(root.join("Cargo.toml"))?;
    let lints = workspace.split("[workspace.lints.rust]").nth(1).context("the workspace has lints")?;
    let lints = lints.split("\n[").next().unwrap_or_default();
    ensure!(lints.contains("unsafe_code = \"forbid\""), "the workspace does not forbid unsafe code: {lints}");

    let mut manifests = Vec::new();
    files(root, "Cargo.toml", &mut manifests)?;
    manifests.retain(|manifest| manifest.parent() != Some(root));
    let mut lines = 0;
    let mut sources = Vec::new();
    for manifest in &manifests {
        let text = std::fs::read_to_string(manifest)?;
        // A crate outside the workspace, for fuzzing say, must say it itself.
        let forbids = text.contains("[lints]\nworkspace = true") || text.contains("unsafe_code = \"forbid\"");
        ensure!(forbids, "{} does not forbid unsafe code", manifest.display());
        files(manifest.parent().unwrap_or(root), ".rs", &mut sources)?;
    }
    for source in &sources {
        for (nth, line) in std::fs::read_to_string(source)?.lines().enumerate() {
            lines += 1;
            let allows = has_word(line, "unsafe_code") && (has_word(line, "allow") || has_word(line, "expect"));
            if has_word(line, "unsafe") || allows {
                bail!("{}:{}: {line}", source.display(), nth + 1);
            }
        }
    }
    ensure!(
        manifests.len() >= 8 && sources.len() > 100,
        "only {} crates and {} files were found",
        manifests.len(),
        sources.len()
    );
    Ok(Outcome::new(sources.len(), format!("files, {lines} lines, {} crates", manifests.len())))
}
