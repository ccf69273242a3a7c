//! The daemon's configuration: variables, one `NAME=value` a line, up to an empty line, then the file.
//!
//! Promises: any environment and any file ends in a configuration or in lines that name the variable
//! or the file, and no line shows a secret.

use std::cell::RefCell;

use kit::config::{PREFIX, Source, read};
use lago_webhook_processor::config::{Config, well_known};

use crate::parts::fold;
use crate::scratch::Scratch;

/// What a secret holds in the corpus.
const CANARY: &str = "c4n4ry";

thread_local! {
    static FOLDER: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// Reads the configuration.
///
/// # Panics
/// A mistake is told badly, or a secret is shown.
pub fn target(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (variables, file) = text.split_once("\n\n").unwrap_or((&text, ""));
    let env: Vec<(String, String)> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let path = FOLDER.with_borrow_mut(|folder| folder.get_or_insert_with(Scratch::new).path("config.toml"));
    std::fs::write(&path, file).expect("the file can be written");
    let secret = shows_only_secrets(&env, file);
    let source = Source { file: Some(path.clone()), env, well_known: well_known() };

    let (config, lines) = read::<Config>(&source);
    let known = |line: &str| {
        line.starts_with(PREFIX)
            || line.starts_with(&format!("{}: ", path.display()))
            || source.well_known.iter().any(|known| line.starts_with(known.env))
    };
    for line in &lines {
        assert!(known(line), "{line:?} names nothing");
        assert!(!line.contains('\n') && line.len() < 4_096, "{line:?}");
        assert!(!(secret && line.contains(CANARY)), "{line:?} shows a secret");
    }
    let shown = format!("{config:?}");
    assert!(!(secret && shown.contains(CANARY)), "the configuration prints a secret");
    // Reading is slow work, so that not every input is read twice.
    if fold(data).is_multiple_of(8) {
        let (again, same) = read::<Config>(&source);
        assert_eq!((format!("{again:?}"), same), (shown, lines), "reading has no memory");
    }
}

/// The canary stands only where a secret does: in the value of a variable for one, or nowhere.
fn shows_only_secrets(env: &[(String, String)], file: &str) -> bool {
    const SECRETS: [&str; 8] = [
        "LAGO_WEBHOOK_HMAC_KEY",
        "LAGO_API_KEY",
        "SIDECAR_LAGO__HMAC_KEY",
        "SIDECAR_LAGO__API_KEY",
        "SIDECAR_ADMIN__TOKEN",
        "SIDECAR_GATEWAY__SIGNING_SECRET",
        "SIDECAR_GATEWAY__OAUTH__CLIENT_SECRET",
        "SIDECAR_GATEWAY__HEADERS__X_API_KEY",
    ];
    let elsewhere = |(name, value): &(String, String)| {
        name.contains(CANARY) || (value.contains(CANARY) && !SECRETS.contains(&name.as_str()))
    };
    // In a file that is not TOML nobody can say what was meant as a secret: nothing of it is shown.
    // A key may be; it names the place.
    let hidden = !file.contains(CANARY) || (toml::from_str::<toml::Table>(file).is_err() && in_texts(file));
    !env.iter().any(elsewhere) && hidden
}

/// Every canary follows an equals sign and a quotation mark on its line.
fn in_texts(file: &str) -> bool {
    file.lines().filter_map(|line| line.split_once(CANARY)).all(|(before, _)| before.contains("= \""))
}
