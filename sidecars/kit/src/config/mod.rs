//! Configuration: defaults ← strict TOML file ← environment, every mistake reported at once, each
//! naming the variable that mends it.

mod environment;
mod mending;
mod reading;
mod reference;
mod sections;

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::Serialized;
use figment::value::{Dict, Value};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use environment::{list, texts};
pub use reading::{Mistake, from_values};
pub use reference::reference;
pub use sections::{AdminSection, ListenSection, LogSection, ProcessSections, StopSection};

/// Prefix of our environment variables.
pub const PREFIX: &str = "SIDECAR_";

/// A configuration, or a part of one.
pub trait Section: Serialize + DeserializeOwned + Default + JsonSchema {
    /// Fields of a configuration whose own fields are settings beside the others: sections that several daemons have, said
    /// once. In the file, in variables, in messages and on the reference page such a field itself is nowhere to be seen.
    ///
    /// This in the place of `#[serde(flatten)]`, which reads values without their places: a mistake could not be told with
    /// its variable.
    const GROUPS: &'static [&'static str] = &[];

    /// Checks the values against each other and against what they are for.
    fn validate(&self, problems: &mut Problems);
}

/// A variable that is known under a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct WellKnown {
    /// The variable; with a `*` at its end, all that begin so.
    pub env: &'static str,
    /// What it sets, for example `gateway.url`. With a `*`, the map whose key is the rest of the variable in small letters.
    pub path: &'static str,
}

impl WellKnown {
    /// What a variable of this name sets, where it is this one.
    fn path_of(&self, name: &str) -> Option<String> {
        match self.env.strip_suffix('*') {
            None => (self.env == name).then(|| self.path.to_owned()),
            Some(beginning) => {
                let key = name.strip_prefix(beginning).filter(|key| !key.is_empty())?;
                Some(format!("{}.{}", self.path, key.to_lowercase()))
            }
        }
    }
}

/// The well-known variables of every daemon.
pub const COMMON_WELL_KNOWN: [WellKnown; 2] =
    [WellKnown { env: "LOG_LEVEL", path: "log.level" }, WellKnown { env: "LOG_JSON", path: "log.json" }];

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The TOML file, if there is one.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// Variables known under names of their own.
    pub well_known: Vec<WellKnown>,
}

impl Source {
    /// The process's environment and this file.
    pub fn of_process(file: Option<PathBuf>, well_known: &[WellKnown]) -> Self {
        // A variable that is not UTF-8 cannot be one of ours.
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file, env, well_known: well_known.to_vec() }
    }
}

/// Mistakes found while checking values.
#[derive(Debug, Default)]
pub struct Problems {
    found: Vec<(String, String)>,
}

impl Problems {
    /// Reports that the value at `path` (for example `gateway.order`) is wrong, and what it must be.
    pub fn add(&mut self, path: &str, message: &str) {
        self.found.push((path.to_owned(), message.to_owned()));
    }

    /// Whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// One line a mistake, each beginning with the variable. A message that begins with it too says it once.
    pub fn lines(&self, well_known: &[WellKnown]) -> Vec<String> {
        let line = |(path, message): &(String, String)| {
            let variable = variable(path, well_known);
            let said = message.strip_prefix(&*variable).and_then(|rest| rest.strip_prefix(": "));
            format!("{variable}: {}", said.unwrap_or(message))
        };
        self.found.iter().map(line).collect()
    }
}

/// All mistakes of a configuration, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Loads and checks a configuration.
///
/// # Errors
/// Every mistake there is, not only the first.
pub fn load<T: Section>(source: &Source) -> Result<T, ConfigErrors> {
    let (config, lines) = read(source);
    if lines.is_empty() { Ok(config) } else { Err(ConfigErrors(lines)) }
}

/// Reads a configuration and every mistake in it, one line each. Where a value cannot be used the
/// default stands in, so that the rest can still be looked at.
pub fn read<T: Section>(source: &Source) -> (T, Vec<String>) {
    let mut lines = Vec::new();
    let groups = Groups::of::<T>();
    let known = Value::from(groups.open(defaults::<T>()));
    let mut figment = Figment::from(Serialized::defaults(&known));
    if let Some(file) = &source.file {
        match read_file(file) {
            Ok(text) => match toml::from_str::<toml::Table>(&text) {
                Ok(table) => figment = figment.merge(Serialized::defaults(table)),
                Err(error) => lines.push(format!("{}: {}", file.display(), malformed(&text, &error))),
            },
            Err(line) => lines.push(line),
        }
    }
    let environment = environment::read(source, &known, &mut lines);
    figment = figment.merge(Serialized::defaults(environment));

    let mut tree = match figment.find_value("") {
        Ok(Value::Dict(_, tree)) => tree,
        _ => Dict::new(),
    };
    for name in T::GROUPS {
        // To us it is a name, to whoever writes a configuration it is none.
        if tree.remove(*name).is_some() {
            lines.push(format!("{}: is not a setting", variable(name, &source.well_known)));
        }
    }
    let config = mending::extract::<T>(&mut tree, source, (&known, &groups), &mut lines);
    let mut problems = Problems::default();
    config.validate(&mut problems);
    add_lines(&mut lines, problems.lines(&source.well_known));
    (config, lines)
}

/// Adds findings about variables, and elements of lists, that nothing was said about yet: a value that could not be read was
/// replaced by its default, about which there is nothing to say.
pub fn add_lines(lines: &mut Vec<String>, more: Vec<String>) {
    let named: Vec<String> = lines.iter().map(|line| subject(line)).collect();
    lines.extend(more.into_iter().filter(|line| !named.contains(&subject(line))));
}

/// What a line is about: a variable, and of a list the element, such as `rule 2`.
fn subject(line: &str) -> String {
    let (variable, message) = line.split_once(": ").unwrap_or((line, ""));
    let mut words = message.split([' ', ':']);
    match (words.next(), words.next()) {
        (Some(name), Some(number)) if number.parse::<usize>().is_ok() => format!("{variable}: {name} {number}"),
        _ => variable.to_owned(),
    }
}

fn read_file(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("--config {}: {error}", file.display()))
}

/// What is wrong with a file that is not TOML, and where. The error's own text would show the line,
/// which may hold a secret.
pub fn malformed(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or(text);
            format!("line {}: {message}", before.matches('\n').count() + 1)
        }
        None => message,
    }
}

/// What a configuration is where nothing is set, as a tree.
fn defaults<T: Section>() -> Dict {
    match Figment::from(Serialized::defaults(T::default())).find_value("") {
        Ok(Value::Dict(_, tree)) => tree,
        _ => Dict::new(),
    }
}

/// [`Section::GROUPS`] with the names of the settings in each.
struct Groups(Vec<(&'static str, Vec<String>)>);

impl Groups {
    fn of<T: Section>() -> Self {
        let tree = defaults::<T>();
        let fields = |name: &str| tree.get(name).and_then(Value::as_dict).map(|group| group.keys().cloned().collect());
        Self(T::GROUPS.iter().map(|name| (*name, fields(name).unwrap_or_default())).collect())
    }

    /// From how the types have it to how it is written.
    fn open(&self, mut tree: Dict) -> Dict {
        for (name, _) in &self.0 {
            if let Some(Value::Dict(_, group)) = tree.remove(*name) {
                tree.extend(group);
            }
        }
        tree
    }

    /// From how it is written to how the types have it.
    fn close(&self, tree: &Dict) -> Dict {
        let mut closed = tree.clone();
        for (name, fields) in &self.0 {
            let group: Dict = fields.iter().filter_map(|field| closed.remove_entry(field)).collect();
            closed.insert((*name).to_owned(), Value::from(group));
        }
        closed
    }

    /// A place as it is written.
    fn place<'a>(&self, path: &'a [String]) -> &'a [String] {
        match path {
            [group, rest @ ..] if self.0.iter().any(|(name, _)| name == group) => rest,
            path => path,
        }
    }
}

/// The variable that sets `path`: its well-known name, or `SIDECAR_…`.
pub fn variable(path: &str, well_known: &[WellKnown]) -> String {
    well_known.iter().find(|known| known.path == path).map_or_else(
        || format!("{PREFIX}{}", path.to_uppercase().replace('.', "__").replace('-', "_")),
        |known| known.env.to_owned(),
    )
}

/// Whether a value at this path must not be shown.
fn looks_secret(path: &[String]) -> bool {
    path.iter().any(|part| {
        let part = part.to_ascii_lowercase();
        !part.ends_with("_file")
            && ["key", "secret", "token", "password", "headers"].iter().any(|word| part.contains(word))
    })
}

#[cfg(test)]
mod tests;
