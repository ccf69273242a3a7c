//! Reads what a daemon exposes at `/metrics`, for assertions and for the ledger.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::raw::{self, RawError};

/// The samples of one exposition, in OpenMetrics or Prometheus text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    samples: BTreeMap<String, BTreeMap<Labels, f64>>,
    families: BTreeMap<String, Family>,
    ended: bool,
}

/// The labels of one series, by name.
pub type Labels = BTreeMap<String, String>;

/// What the `# TYPE`, `# HELP` and `# UNIT` lines say about a family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// `counter`, `gauge`, `histogram` …; empty where no `# TYPE` line was seen.
    pub kind: String,
    /// The help sentence.
    pub help: String,
    /// The unit, where one is stated.
    pub unit: String,
}

/// The text is not an exposition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the metrics: {what}")]
pub struct MetricsError {
    /// Line number from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Why a daemon's metrics could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The admin listener gave no answer.
    #[error("fetch the metrics")]
    Http(#[from] RawError),
    /// It answered something else.
    #[error("the metrics are answered with status {0}")]
    Status(u16),
    /// The answer cannot be read.
    #[error("read the metrics")]
    Parse(#[from] MetricsError),
}

impl Metrics {
    /// Parses an exposition. Exemplars and time stamps are skipped.
    ///
    /// # Errors
    /// [`MetricsError`] for the first line that is not understood; a series given twice is one.
    pub fn parse(text: &str) -> Result<Self, MetricsError> {
        let mut metrics = Self::default();
        for (index, line) in text.lines().enumerate() {
            let fail = |what| MetricsError { line: index + 1, what };
            if metrics.ended && !line.is_empty() {
                return Err(fail("text after # EOF"));
            }
            if let Some(comment) = line.strip_prefix('#') {
                metrics.comment(comment.trim_start());
            } else if !line.trim().is_empty() {
                let (name, labels, value) = sample(line).map_err(fail)?;
                let series = metrics.samples.entry(name).or_default();
                if series.insert(labels, value).is_some() {
                    return Err(fail("the same series twice"));
                }
            }
        }
        Ok(metrics)
    }

    /// Fetches and parses `GET /metrics` of an admin listener.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(admin: SocketAddr, deadline: Duration) -> Result<Self, FetchError> {
        let answer = raw::get(admin, "/metrics", deadline).await?;
        if answer.status != 200 {
            return Err(FetchError::Status(answer.status));
        }
        Ok(Self::parse(&answer.text())?)
    }

    /// The value of the one series with exactly this name and these labels.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.get(name)?.get(&labels).copied()
    }

    /// The sum over all series of this name that carry at least these labels; `0.0` when there is
    /// none, because a counter that was never touched may be absent.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name)
            .filter(|(known, _)| {
                labels.iter().all(|(name, value)| known.get(*name).is_some_and(|known| known == value))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// All series of one name.
    pub fn series(&self, name: &str) -> impl Iterator<Item = (&Labels, f64)> {
        self.samples.get(name).into_iter().flatten().map(|(labels, value)| (labels, *value))
    }

    /// The names of all samples, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.keys().map(String::as_str)
    }

    /// How many series there are: must not grow with what senders put into events.
    pub fn series_count(&self) -> usize {
        self.samples.values().map(BTreeMap::len).sum()
    }

    /// The families with their type, help and unit, by name.
    pub fn families(&self) -> &BTreeMap<String, Family> {
        &self.families
    }

    /// Whether the text ended with `# EOF`, as OpenMetrics demands: a cut answer has none.
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    fn comment(&mut self, comment: &str) {
        if comment == "EOF" {
            self.ended = true;
            return;
        }
        let mut words = comment.splitn(3, ' ');
        let (keyword, name, text) =
            (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !matches!(keyword, "TYPE" | "HELP" | "UNIT") {
            return;
        }
        let family = self.families.entry(name.to_owned()).or_default();
        match keyword {
            "TYPE" => family.kind = text.to_owned(),
            "HELP" => family.help = unescape(text),
            _ => family.unit = text.to_owned(),
        }
    }
}

/// `name{label="value",…} value [timestamp] [# exemplar]`
fn sample(line: &str) -> Result<(String, Labels, f64), &'static str> {
    let name_end = line.find(|c: char| c == '{' || c.is_ascii_whitespace()).ok_or("a sample without a value")?;
    let (name, mut rest) = line.split_at(name_end);
    let is_name = |text: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
            && !text.starts_with(|c: char| c.is_ascii_digit())
    };
    if !is_name(name) {
        return Err("not a metric name");
    }
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"").ok_or("a label without a value")?;
            if !is_name(label) {
                return Err("not a label name");
            }
            let end = closing_quote(after).ok_or("a label value without its end")?;
            if labels.insert(label.to_owned(), unescape(&after[..end])).is_some() {
                return Err("the same label twice");
            }
            rest = &after[end + 1..];
        }
    }
    let value = rest.split_ascii_whitespace().next().ok_or("a sample without a value")?;
    // Rust reads `+Inf`, `-Inf` and `NaN` as Prometheus writes them.
    let value = value.parse().map_err(|_| "a value that is not a number")?;
    Ok((name.to_owned(), labels, value))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const EXPOSITION: &str = r#"# HELP business_events Events by type and outcome.
# TYPE business_events counter
business_events_total{event_type="payment",status="failed"} 3
business_events_total{event_type="payment",status="succeeded"} 4 # {trace_id="x"} 1.0 1.5
business_events_total{event_type="odd \"quoted\", \\ and\nline}",status="other"} 1
# TYPE process_resident_memory_bytes gauge
# UNIT process_resident_memory_bytes bytes
process_resident_memory_bytes 1.5e6 1395066363000
commit_seconds_bucket{le="+Inf"} 7
# EOF
"#;

    #[test]
    fn series_are_found_by_name_and_labels() {
        let metrics = Metrics::parse(EXPOSITION).unwrap();

        let name = "business_events_total";
        assert_eq!(metrics.get(name, &[("status", "failed"), ("event_type", "payment")]), Some(3.0));
        assert_eq!(metrics.get(name, &[("event_type", "payment")]), None);
        assert_eq!(metrics.sum(name, &[("event_type", "payment")]), 7.0);
        assert_eq!(metrics.sum(name, &[("event_type", "nothing")]), 0.0);
        assert_eq!(
            metrics.get(name, &[("event_type", "odd \"quoted\", \\ and\nline}"), ("status", "other")]),
            Some(1.0)
        );
        assert_eq!(metrics.get("process_resident_memory_bytes", &[]), Some(1.5e6));
        assert_eq!(metrics.series_count(), 5);
        assert!(metrics.is_complete());
    }

    #[test]
    fn families_tell_type_help_and_unit() {
        let metrics = Metrics::parse(EXPOSITION).unwrap();

        let family = &metrics.families()["business_events"];
        assert_eq!(family.kind, "counter");
        assert_eq!(family.help, "Events by type and outcome.");
        assert_eq!(metrics.families()["process_resident_memory_bytes"].unit, "bytes");
    }

    #[test]
    fn a_cut_exposition_is_not_complete() {
        let cut = EXPOSITION.trim_end().trim_end_matches("# EOF");

        assert!(!Metrics::parse(cut).unwrap().is_complete());
    }

    #[test]
    fn what_is_not_an_exposition_names_its_line() {
        for (text, line) in [
            ("<html>", 1),
            ("a 1\nb", 2),
            ("a{x=\"1\" 1", 1),
            ("a{x=\"1\",x=\"2\"} 1", 1),
            ("a{x=\"1} 1", 1),
            ("a one", 1),
            ("a 1\na 2", 2),
            ("# EOF\na 1", 2),
            ("0a 1", 1),
        ] {
            assert_eq!(Metrics::parse(text).map_err(|error| error.line), Err(line), "{text}");
        }
    }
}
