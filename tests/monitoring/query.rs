//! Reading a query, as far as it says which series it asks for: names with their matchers, and labels that it groups by.
//! Whether it is a query at all is for Prometheus to say.

use std::collections::BTreeSet;

/// What a query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Metric names with their matchers: what `/api/v1/series` takes.
    pub(crate) selectors: BTreeSet<String>,
    /// Labels that it groups or matches by.
    pub(crate) labels: BTreeSet<String>,
}

/// Words that stand where a metric's name may.
const OPERATORS: &[&str] = &["and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "start", "end"];
/// Words before a list of labels.
const GROUPING: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Reads a query.
pub(crate) fn asked(query: &str) -> Asked {
    let mut asked = Asked::default();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || first == '_' || first == ':' {
            let (word, after) = split(rest, |c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
            let next = after.trim_start();
            if GROUPING.contains(&word) {
                let list = next.strip_prefix('(').unwrap_or_default();
                let (labels, after) = list.split_once(')').unwrap_or((list, ""));
                asked
                    .labels
                    .extend(labels.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned));
                rest = if next.starts_with('(') { after } else { next };
            } else if OPERATORS.contains(&word.to_lowercase().as_str()) || next.starts_with('(') || groups(next) {
                rest = after;
            } else if next.starts_with('{') {
                let end = end_of_braces(next);
                asked.selectors.insert(format!("{word}{}", &next[..end]));
                rest = &next[end..];
            } else {
                asked.selectors.insert(word.to_owned());
                rest = after;
            }
        } else if first.is_ascii_digit() || first == '.' {
            // A number or a duration.
            rest = split(rest, |c| c.is_ascii_alphanumeric() || c == '.').1;
        } else if first == '{' {
            let end = end_of_braces(rest);
            asked.selectors.insert(rest[..end].to_owned());
            rest = &rest[end..];
        } else if first == '[' {
            rest = rest.split_once(']').map_or("", |(_, after)| after);
        } else if first == '"' || first == '\'' {
            rest = &rest[end_of_string(rest)..];
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    asked
}

/// What comes before it aggregates: `sum by (…)`.
fn groups(text: &str) -> bool {
    let word = split(text, |c| c.is_ascii_alphabetic()).0;
    ["by", "without"].contains(&word)
}

fn split(text: &str, is_part: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

/// Behind the string that a text begins with.
fn end_of_string(text: &str) -> usize {
    let mut characters = text.char_indices();
    let quote = characters.next().map(|(_, quote)| quote);
    let mut escaped = false;
    for (at, c) in characters {
        if !escaped && Some(c) == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    text.len()
}

/// Behind the braces that a text begins with; those in strings do not count.
fn end_of_braces(text: &str) -> usize {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        match c {
            '"' | '\'' => at += end_of_string(&text[at..]),
            '}' => return at + 1,
            _ => at += c.len_utf8(),
        }
    }
    text.len()
}

#[test]
fn a_query_is_read_for_what_it_asks_for() {
    let check = |query: &str, selectors: &[&str], labels: &[&str]| {
        let found = asked(query);
        assert_eq!(found.selectors.iter().map(String::as_str).collect::<Vec<_>>(), selectors, "{query}");
        assert_eq!(found.labels.iter().map(String::as_str).collect::<Vec<_>>(), labels, "{query}");
    };
    check("up", &["up"], &[]);
    check("1e3 + 2", &[], &[]);
    check("time() - a_b:c{x=\"}\",y!~'[{]'} > bool 5", &["a_b:c{x=\"}\",y!~'[{]'}"], &[]);
    check(
        "sum by (daemon, sink) (rate(a{b=\"c\"}[5m] offset 1h)) / on (daemon) group_left (x) max(d)",
        &["a{b=\"c\"}", "d"],
        &["daemon", "sink", "x"],
    );
    check("histogram_quantile(0.99, sum(rate(a_bucket[1m])) by (le)) or vector(0)", &["a_bucket"], &["le"]);
    check("a and on() b unless ignoring (x) c", &["a", "b", "c"], &["x"]);
    check("label_replace(a, \"b\", \"$1\", \"c\", \"(.*)\") @ start() == Inf", &["a"], &[]);
}
