//! Where things are: the variables of the daemons and of the compose files, from the environment and from an `.env`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kit::secret::{self, Secret, SecretError};

use super::compose::Installed;

/// Variables by name; an empty one counts as unset, as compose has it.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    values: BTreeMap<String, String>,
    /// The folder of the file, and what only that says: its paths begin there, as compose has it.
    of_file: Option<(PathBuf, BTreeSet<String>)>,
}

impl Settings {
    /// The environment, and below it what a file of lines `NAME=value` says.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let mut settings = Self::default();
        if let Some(file) = file {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("read {} (--env-file)", file.display()))?;
            settings.values.extend(text.lines().filter_map(line));
            let folder = file.parent().unwrap_or(Path::new("")).to_owned();
            settings.of_file = Some((folder, settings.values.keys().cloned().collect()));
        }
        let own =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        for (name, value) in own.filter(|(_, value)| !value.is_empty()) {
            if let Some((_, names)) = &mut settings.of_file {
                names.remove(&name);
            }
            settings.values.insert(name, value);
        }
        if let Some(installed) = Installed::of(&settings) {
            installed.left_out(&settings).into_iter().for_each(|name| _ = settings.values.remove(name));
        }
        Ok(settings)
    }

    /// These, and no others.
    #[cfg(test)]
    pub(crate) fn of(known: &[(&str, &str)]) -> Self {
        let values = known.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { values, of_file: None }
    }

    /// A variable that is set.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// A variable that names a file.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.get(name)?);
        match &self.of_file {
            Some((folder, names)) if names.contains(name) => Some(folder.join(path)),
            _ => Some(path),
        }
    }

    /// The secret of `NAME` or of the file that `NAME_FILE` names.
    ///
    /// # Errors
    /// Both are set, or the file cannot be read; names the variable.
    pub(crate) fn secret(&self, name: &str) -> Result<Option<Secret>, SecretError> {
        let file = format!("{name}_FILE");
        let value = self.get(name).map(|value| Secret::from(value.to_owned()));
        secret::resolve(name, value.as_ref(), &file, self.path(&file).as_deref())
    }

    /// All of them, for the configuration of a daemon.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// A line of an `.env` file, as compose reads it.
fn line(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    let value = value.trim();
    let quoted = |quote: char| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    Some((name.trim().trim_start_matches("export ").to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_env_file_are_read_as_compose_reads_them() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let read = line(text);
            assert_eq!(read.as_ref().map(|(name, value)| (name.as_str(), value.as_str())), expected, "{text}");
        };
        check("A=b", Some(("A", "b")));
        check(" A = 'b c' ", Some(("A", "b c")));
        check("A=\"x=y\"", Some(("A", "x=y")));
        check("A=", Some(("A", "")));
        check("# A=b", None);
        check("", None);
    }
}
