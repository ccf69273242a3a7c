//! Configuration: defaults ← strict TOML file ← environment, every mistake reported at once, each
//! naming the variable that mends it.

mod environment;
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
    let config = extract::<T>(&mut tree, source, (&known, &groups), &mut lines);
    let mut problems = Problems::default();
    config.validate(&mut problems);
    add_lines(&mut lines, problems.lines(&source.well_known));
    (config, lines)
}

/// Adds findings about variables that nothing was said about yet: a value that could not be read was
/// replaced by its default, about which there is nothing to say.
pub fn add_lines(lines: &mut Vec<String>, more: Vec<String>) {
    let variable = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let named: Vec<String> = lines.iter().map(|line| variable(line)).collect();
    lines.extend(more.into_iter().filter(|line| !named.contains(&variable(line))));
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

/// Extracts, and on an error takes the offending value out and extracts again, until it works.
fn extract<T: Section>(
    tree: &mut Dict,
    source: &Source,
    (known, groups): (&Value, &Groups),
    lines: &mut Vec<String>,
) -> T {
    // Every round removes one value; a tree has far fewer.
    for _ in 0..10_000 {
        let error = match from_values::<T>(&Value::from(groups.close(tree))) {
            Ok(config) => return config,
            Err(error) => error,
        };
        // An element of a list is mended where the list is.
        let place = groups.place(&error.path);
        let mut path: Vec<String> = place.iter().take_while(|part| part.parse::<usize>().is_err()).cloned().collect();
        let message = match &error.kind {
            figment::error::Kind::UnknownField(name, _) => {
                if path.last() != Some(name) {
                    path.push(name.clone());
                }
                unknown(&path, known)
            }
            figment::error::Kind::InvalidType(found, expected)
            | figment::error::Kind::InvalidValue(found, expected) => {
                if looks_secret(&path) {
                    format!("must be {expected}")
                } else {
                    format!("found {found}, must be {expected}")
                }
            }
            figment::error::Kind::UnknownVariant(found, expected) => {
                format!("{found:?} is not one of {}", expected.join(", "))
            }
            kind => kind.to_string(),
        };
        let shown = path.join(".");
        lines.push(format!("{}: {message}", variable(&shown, &source.well_known)));
        if path.is_empty() || !remove(tree, &path) {
            // Nothing to take out: the rest cannot be looked at.
            return T::default();
        }
    }
    T::default()
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

/// Takes the value at `path` out; where the path leads into an array, the array.
fn remove(tree: &mut Dict, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        return tree.remove(first).is_some();
    }
    match tree.get_mut(first) {
        Some(Value::Dict(_, inner)) => remove(inner, rest) || tree.remove(first).is_some(),
        Some(_) => tree.remove(first).is_some(),
        None => false,
    }
}

fn unknown(path: &[String], known: &Value) -> String {
    let (Some(name), parents) = (path.last(), &path[..path.len() - 1]) else { return "is not a setting".to_owned() };
    let mut siblings = known;
    for parent in parents {
        match siblings.as_dict().and_then(|dict| dict.get(parent)) {
            Some(value) => siblings = value,
            None => return "is not a setting".to_owned(),
        }
    }
    let nearest = siblings.as_dict().and_then(|dict| {
        dict.keys().map(|key| (distance(key, name), key)).min().filter(|(distance, key)| *distance * 2 < key.len())
    });
    match nearest {
        Some((_, key)) => {
            let mut path = parents.to_vec();
            path.push(key.clone());
            format!("is not a setting, did you mean {}?", variable(&path.join("."), &[]))
        }
        None => "is not a setting".to_owned(),
    }
}

/// Levenshtein distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or(0)
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
