//! Values that must not be seen: they print as `[redacted]` wherever they end up.

use std::io::Read as _;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;

/// Largest secret file; anything longer is a mistake.
const FILE_BYTES: u64 = 64 * 1024;

/// A secret text.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself. The name makes every use stand out.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("[redacted]")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The usual error would quote what it found.
        String::deserialize(deserializer).map(Self).map_err(|_| serde::de::Error::custom("must be a text"))
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "format": "secret" })
    }
}

/// A secret that cannot be had. Names the variable and never its value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Both forms are set, and nobody could say which one counts.
    #[error("{value} and {file} are both set: keep one")]
    Both {
        /// Name of the variable with the value.
        value: String,
        /// Name of the variable with the file.
        file: String,
    },
    /// The file cannot be read.
    #[error("{name}: cannot read {path}: {reason}")]
    Unreadable {
        /// Name of the variable.
        name: String,
        /// The file.
        path: String,
        /// The operating system's word.
        reason: std::io::Error,
    },
    /// The value holds nothing.
    #[error("{name} is empty")]
    Empty {
        /// Name of the variable.
        name: String,
    },
    /// The file cannot be a secret.
    #[error("{name}: {path} {what}")]
    Unlikely {
        /// Name of the variable.
        name: String,
        /// The file.
        path: String,
        /// What it is instead.
        what: &'static str,
    },
}

/// The secret given by value or by file; `None` when neither is set. One line break at the end of a
/// file does not belong to the secret.
///
/// # Errors
/// [`SecretError`].
pub fn resolve(
    value_name: &str,
    value: Option<&Secret>,
    file_name: &str,
    file: Option<&Path>,
) -> Result<Option<Secret>, SecretError> {
    let (name, secret) = match (value, file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(SecretError::Both { value: value_name.to_owned(), file: file_name.to_owned() });
        }
        (Some(value), None) => (value_name, value.clone()),
        (None, Some(file)) => {
            let text = read(file_name, file)?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            (file_name, Secret(text.strip_suffix('\r').unwrap_or(text).to_owned()))
        }
    };
    if secret.0.is_empty() { Err(empty(name, file)) } else { Ok(Some(secret)) }
}

/// As [`resolve`], for secrets of which several are valid while one replaces the other: one a line,
/// blank lines ignored.
///
/// # Errors
/// [`SecretError`].
pub fn resolve_lines(
    value_name: &str,
    value: Option<&Secret>,
    file_name: &str,
    file: Option<&Path>,
) -> Result<Vec<Secret>, SecretError> {
    let Some(all) = resolve(value_name, value, file_name, file)? else { return Ok(Vec::new()) };
    let secrets: Vec<Secret> =
        all.0.lines().filter(|line| !line.trim().is_empty()).map(|line| Secret(line.to_owned())).collect();
    if secrets.is_empty() {
        let name = if file.is_some() { file_name } else { value_name };
        return Err(empty(name, file));
    }
    Ok(secrets)
}

fn empty(name: &str, file: Option<&Path>) -> SecretError {
    let name = name.to_owned();
    match file {
        Some(path) => SecretError::Unlikely { name, path: path.display().to_string(), what: "is empty" },
        None => SecretError::Empty { name },
    }
}

fn read(name: &str, path: &Path) -> Result<String, SecretError> {
    let shown = path.display().to_string();
    let unreadable = |reason| SecretError::Unreadable { name: name.to_owned(), path: shown.clone(), reason };
    let unlikely = |what| SecretError::Unlikely { name: name.to_owned(), path: shown.clone(), what };
    let mut bytes = Vec::new();
    // Bounded by what is read and not by the length it tells: devices and pipes tell none.
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(unlikely("is larger than 64 KiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| unlikely("is not UTF-8 text"))?;
    // It would be part of the secret, and nobody would see why nothing fits.
    if text.starts_with('\u{feff}') {
        return Err(unlikely("begins with a byte order mark: save it without one"));
    }
    if text.contains('\0') {
        return Err(unlikely("holds a NUL: is it text in another encoding?"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, content).unwrap();
        (directory, path)
    }

    #[test]
    fn one_line_break_at_the_end_is_not_part_of_it() {
        for (content, expected) in [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a ")] {
            let (_keep, path) = file(content.as_bytes());
            let secret = resolve("K", None, "K_FILE", Some(&path)).unwrap().unwrap();
            assert_eq!(secret.expose(), expected, "{content:?}");
        }
    }

    #[test]
    fn rotation_holds_several() {
        let (_keep, path) = file(b"one\r\n\n two \n");
        let secrets = resolve_lines("K", None, "K_FILE", Some(&path)).unwrap();
        assert_eq!(secrets.iter().map(Secret::expose).collect::<Vec<_>>(), ["one", " two "]);
    }

    #[test]
    fn mistakes_name_the_variable_and_never_the_value() {
        let value = Secret::from("topsecret".to_owned());
        let (_keep, empty) = file(b"\n");
        let (_keep, binary) = file(b"\xff\xfe");
        let (_keep, marked) = file("\u{feff}topsecret".as_bytes());
        let (_keep, wide) = file(b"t\0o\0p\0");
        let (_keep, large) = file(&vec![b'x'; 70_000]);
        let check = |value: Option<&Secret>, path: Option<&Path>, expected: &str| {
            let error = resolve("K", value, "K_FILE", path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("topsecret"));
        };
        check(Some(&value), Some(&empty), "K and K_FILE are both set");
        check(None, Some(&empty), &format!("K_FILE: {} is empty", empty.display()));
        check(None, Some(&binary), "not UTF-8");
        check(None, Some(&large), "64 KiB");
        check(None, Some(&marked), "byte order mark");
        check(None, Some(&wide), "NUL");
        // Tells no length and never ends.
        check(None, Some(Path::new("/dev/zero")), "64 KiB");
        check(None, Some(Path::new("/nonexistent/secret")), "cannot read /nonexistent/secret");
        check(Some(&Secret::from(String::new())), None, "K is empty");
    }

    #[test]
    fn it_never_prints() {
        let secret = Secret::from("topsecret".to_owned());
        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[redacted]\"");
        let error = serde_json::from_str::<Secret>("12345").unwrap_err().to_string();
        assert!(!error.contains("12345"), "{error}");
    }
}
