//! Lago's RSA key: makes one, judges one, and puts it into the forms that a version of Lago takes. The key itself is written
//! into files of mode 0600 and nowhere else.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use kit::lifecycle::exit;
use kit_lago::signature::{LagoPrivateKey, PrivateKeyError, RsaKey};
use serde::Serialize;

/// The variable that every Lago takes the key from.
const VARIABLE: &str = "LAGO_RSA_PRIVATE_KEY";
/// Where newer ones look first.
const LAGO_FILE: &str = "/app/config/keys/private.pem";
/// Since when: v1.23.0 of getlago/lago-api, with no variable that could name another place.
const FILE_SINCE: (u64, u64) = (1, 23);
/// Largest file that is read.
const FILE_BYTES: u64 = 64 << 10;

/// Which key, and what to do with it.
#[derive(Args, Clone, Debug, Default)]
pub struct Arguments {
    /// File with the private key in PEM. Without it LAGO_RSA_PRIVATE_KEY of the environment is judged.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Make the key where the file is not there yet, with mode 0600.
    #[arg(long, requires = "file")]
    pub create: bool,
    /// Size of a new key.
    #[arg(long, default_value_t = 2048, value_parser = bits)]
    pub bits: usize,
    /// Write the line LAGO_RSA_PRIVATE_KEY=… into this file, with mode 0600, for an env_file. Other content is left alone.
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Write the public half into this file, for LAGO_WEBHOOK_PUBLIC_KEY_FILE.
    #[arg(long, value_name = "FILE")]
    pub public_file: Option<PathBuf>,
    /// Version of Lago that is to take it, for example v1.16.0.
    #[arg(long, value_name = "VERSION")]
    pub lago_version: Option<String>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether Lago can do with it.
    pub ok: bool,
    /// What.
    pub what: &'static str,
    /// How it is.
    pub text: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

fn good(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { ok: true, what, text: text.into(), fix: None }
}

fn bad(what: &'static str, text: impl Into<String>, fix: &str) -> Finding {
    Finding { ok: false, what, text: text.into(), fix: Some(fix.to_owned()) }
}

/// A line for people.
pub fn line(finding: &Finding) -> String {
    let mark = if finding.ok { "ok  " } else { "FAIL" };
    let fix = finding.fix.as_deref().map(|fix| format!(" → {fix}")).unwrap_or_default();
    format!("{mark} {:<9} {}{fix}", finding.what, finding.text)
}

/// Prints what was found, and returns the exit code.
pub fn main(arguments: &Arguments) -> u8 {
    let findings = examine(arguments, std::env::var(VARIABLE).ok().as_deref());
    let text: String = findings.iter().map(|finding| format!("{}\n", line(finding))).collect();
    let code = kit::one_shot::say(&text);
    if findings.iter().all(|finding| finding.ok) { code } else { exit::DIED }
}

/// Looks at the key of the file or of the variable, whose value this is, and writes what is asked for.
pub fn examine(arguments: &Arguments, variable: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let version = match arguments.lago_version.as_deref().map(version) {
        Some(None) => {
            return vec![bad("version", "--lago-version is no version", "name one such as v1.16.0")];
        }
        version => version.flatten(),
    };
    let variable = variable.filter(|value| !value.is_empty());
    let in_variable = variable.map(|value| (value, LagoPrivateKey::from_variable(value)));
    let in_file = arguments.file.as_deref().map(|path| key_of(path, arguments, &mut findings));
    let key = match (&in_file, &in_variable) {
        (Some(Some(key)), _) | (None, Some((_, Ok(key)))) => Some(key),
        _ => None,
    };
    if in_file.is_none() && in_variable.is_none() {
        let text = format!("no key: neither --file nor {VARIABLE}");
        return vec![bad("key", text, "--file private.pem, with --create to make it")];
    }
    if let Some(key) = key {
        let public = key.public_key();
        findings.push(good(
            "key",
            format!("RSA, {} bits, {}, public half {}", public.bits(), key.form(), public.fingerprint()),
        ));
    }
    if let Some((value, judged)) = &in_variable {
        findings.push(variable_finding(value, judged, key));
    }
    if let Some(key) = key {
        let has_variable = in_variable.is_some() || arguments.env_file.is_some();
        findings.push(forms(version, has_variable));
        let line = format!("{VARIABLE}={}\n", key.variable().expose());
        for (path, content, mode, what) in [
            (&arguments.env_file, line, 0o600, "env file"),
            (&arguments.public_file, public_text(key), 0o644, "public"),
        ] {
            if let Some(path) = path {
                findings.push(write(path, &content, mode, what));
            }
        }
    }
    findings
}

/// The public half of the key of the file or else of the variable, where there is a usable one.
pub fn public_half(arguments: &Arguments, variable: Option<&str>) -> Option<RsaKey> {
    let key = match &arguments.file {
        Some(path) => LagoPrivateKey::from_pem(&read(path).ok()?),
        None => LagoPrivateKey::from_variable(variable?),
    };
    Some(key.ok()?.public_key().clone())
}

/// Whether the key that Lago hands out is one of these, which `name` holds.
pub fn served(name: &str, keys: &[RsaKey], served: &RsaKey) -> Finding {
    let fingerprint = served.fingerprint();
    if keys.contains(served) {
        return good("lago", format!("Lago signs with the key of {name}, public half {fingerprint}"));
    }
    bad(
        "lago",
        format!("Lago signs with another key than that of {name}: its public half is {fingerprint}"),
        "restart Lago's api, worker, clock and migrate together with the same key; each has it from its start",
    )
}

fn public_text(key: &LagoPrivateKey) -> String {
    key.public_key().to_pem()
}

/// The key of a file, made where that is asked for.
fn key_of(path: &Path, arguments: &Arguments, findings: &mut Vec<Finding>) -> Option<LagoPrivateKey> {
    let shown = path.display();
    let mut text = read(path);
    if arguments.create && text.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        let made = LagoPrivateKey::generate(arguments.bits).map_err(io::Error::other);
        match made.and_then(|key| place(path, key.pem().expose(), 0o600)) {
            Ok(()) => findings.push(good("created", format!("{shown}, mode 0600"))),
            // Another one was faster: its key counts.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                findings.push(bad(
                    "file",
                    format!("{shown} cannot be made: {error}"),
                    "mount a folder that may be written",
                ));
                return None;
            }
        }
        text = read(path);
    }
    let key = match text {
        Ok(text) => LagoPrivateKey::from_pem(&text),
        Err(error) => {
            let fix =
                if error.kind() == io::ErrorKind::NotFound { "--create makes it" } else { "see that it may be read" };
            findings.push(bad("file", format!("{shown} cannot be read: {error}"), fix));
            return None;
        }
    };
    match key {
        Ok(key) => {
            let mode = std::fs::metadata(path).map_or(0, |about| about.permissions().mode() & 0o777);
            let others = if mode & 0o077 == 0 {
                ""
            } else {
                "; others than its owner may read it, unless Lago needs that: chmod 600"
            };
            findings.push(good("file", format!("{shown}, mode {mode:04o}{others}")));
            Some(key)
        }
        Err(error) => {
            findings.push(bad("file", format!("{shown}: {error}"), "or move it away and use --create"));
            None
        }
    }
}

fn variable_finding(
    value: &str,
    judged: &Result<LagoPrivateKey, PrivateKeyError>,
    key: Option<&LagoPrivateKey>,
) -> Finding {
    match judged {
        Err(error) => bad(
            "variable",
            format!("{VARIABLE}: {error}"),
            "--file private.pem --env-file FILE writes it as Lago wants it",
        ),
        Ok(own) if key.is_some_and(|key| key.public_key() != own.public_key()) => bad(
            "variable",
            format!(
                "{VARIABLE} and the file are different keys, and Lago from v1.23.0 on takes the file at {LAGO_FILE} where it is there"
            ),
            "keep one of them",
        ),
        Ok(_) if value.trim().contains(char::is_whitespace) => bad(
            "variable",
            format!("{VARIABLE} goes over several lines: Lago reads it so, an .env file does not hold it"),
            "--env-file FILE writes it on one line",
        ),
        Ok(_) => good("variable", format!("{VARIABLE} is the Base64 of its PEM, as every Lago takes it")),
    }
}

/// Which forms this Lago takes, and whether one of them is there.
fn forms(version: Option<(u64, u64)>, has_variable: bool) -> Finding {
    let by_variable = format!("{VARIABLE}, the Base64 of the PEM on one line");
    match version {
        Some(version) if version < FILE_SINCE => {
            let shown = format!("v{}.{}", version.0, version.1);
            if has_variable {
                return good("forms", format!("Lago {shown} takes {by_variable}, and no file"));
            }
            let text = format!("Lago {shown} takes {by_variable}, and no file: it would not start");
            bad("forms", text, "--env-file FILE writes it")
        }
        Some(version) => {
            let shown = format!("v{}.{}", version.0, version.1);
            good(
                "forms",
                format!("Lago {shown} takes the file at {LAGO_FILE}, and where it is not there {by_variable}"),
            )
        }
        None => good(
            "forms",
            format!("every Lago takes {by_variable}; from v1.23.0 on the file at {LAGO_FILE} wins over it"),
        ),
    }
}

/// Writes a file; one that is there with the same content stays, and any other one too.
fn write(path: &Path, content: &str, mode: u32, what: &'static str) -> Finding {
    let shown = path.display();
    match place(path, content, mode) {
        Ok(()) => good(what, format!("{shown} written, mode {mode:04o}")),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match read(path) {
            Ok(known) if known == content => good(what, format!("{shown} holds it already")),
            _ => bad(
                what,
                format!("{shown} holds something else and is left alone"),
                "move it away, or name another file",
            ),
        },
        Err(error) => {
            bad(what, format!("{shown} cannot be written: {error}"), "name a file in a folder that may be written")
        }
    }
}

/// Puts a file where there is none, whole or not at all, also when two do it at a time.
fn place(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?.to_string_lossy().into_owned();
    let beside = path.with_file_name(format!(".{name}.{:016x}", fastrand::u64(..)));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        // The mask may have taken bits away.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::hard_link(&beside, path)
    })();
    let removed = std::fs::remove_file(&beside);
    written.and(match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
}

fn read(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// A size that a key may have.
fn bits(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|bits| matches!(bits, 2048 | 3072 | 4096)).ok_or_else(|| "2048, 3072 or 4096".to_owned())
}

/// Major and minor number of `v1.16.0` or `1.16`.
fn version(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.trim().trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
