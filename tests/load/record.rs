//! What is printed: one JSON object a measurement, and at the end what was asked for beside what was seen.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// Takes measurements and verdicts.
#[derive(Debug)]
pub(crate) struct Records {
    file: Option<PathBuf>,
    common: Map<String, Value>,
    bars: Vec<(String, bool)>,
}

impl Records {
    /// Records that all name the commit and the machine.
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        let output = |program: &str, arguments: &[&str]| {
            let run = std::process::Command::new(program).args(arguments).output().ok()?;
            Some(String::from_utf8_lossy(&run.stdout).trim().to_owned())
        };
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let mut common = Map::new();
        common.insert("commit".into(), json!(output("git", &["describe", "--always", "--dirty", "--abbrev=10"])));
        common.insert("kernel".into(), json!(output("uname", &["-r"])));
        common.insert("cpu".into(), json!(cpu.trim_start_matches([' ', '\t', ':'])));
        common.insert("cores".into(), json!(std::thread::available_parallelism().map_or(0, usize::from)));
        Self { file, common, bars: Vec::new() }
    }

    /// Takes one measurement: prints it, and appends it to the file.
    pub(crate) fn put(&mut self, section: &str, variant: &str, figures: Value) -> Result<()> {
        let mut object = Map::new();
        object.insert("section".into(), json!(section));
        object.insert("variant".into(), json!(variant));
        if let Value::Object(figures) = figures {
            object.extend(figures);
        }
        say(&format!("{}\n", Value::Object(object.clone())));
        if let Some(path) = &self.file {
            object.extend(self.common.clone());
            let mut file = OpenOptions::new().create(true).append(true).open(path).context("open the JSON file")?;
            writeln!(file, "{}", Value::Object(object))?;
        }
        Ok(())
    }

    /// Takes a figure that has a bar, and what became of it.
    pub(crate) fn bar(&mut self, section: &str, what: &str, seen: f64, wanted: Bar) -> Result<()> {
        let holds = wanted.holds(seen);
        let wanted = wanted.text();
        self.put(section, "bar", json!({ "what": what, "seen": rounded(seen), "wanted": wanted, "holds": holds }))?;
        self.bars.push((format!("{:<12} {what:<62} {:>10} {wanted:>10}", section, rounded(seen)), holds));
        Ok(())
    }

    /// Prints all bars; true when all hold.
    pub(crate) fn finish(self) -> bool {
        let all = self.bars.iter().all(|(_, holds)| *holds);
        say(&format!("\n{:<12} {:<62} {:>10} {:>10}\n", "section", "figure", "seen", "bar"));
        for (line, holds) in &self.bars {
            say(&format!("{line}  {}\n", if *holds { "ok" } else { "MISSED" }));
        }
        all
    }
}

/// What a figure must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Bar {
    fn holds(self, seen: f64) -> bool {
        match self {
            Self::AtLeast(bar) => seen >= bar,
            Self::AtMost(bar) => seen <= bar,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bar) => format!(">= {bar}"),
            Self::AtMost(bar) => format!("<= {bar}"),
        }
    }
}

/// Three decimals are more than the noise allows.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Prints; a closed pipe is no reason to fail.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
