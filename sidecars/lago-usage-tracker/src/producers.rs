//! Who may report usage, and for whom.

use std::collections::BTreeSet;

use kit::config::Problems;
use kit::secret::{self, Secret};
use subtle::ConstantTimeEq as _;

use crate::config::UsageSection;

/// A shorter token could be guessed.
const SHORTEST: usize = 16;

/// Everybody who may report.
#[derive(Debug, Default)]
pub(crate) struct Producers(Vec<Producer>);

/// One holder of a token.
#[derive(Debug)]
pub(crate) struct Producer {
    token: Secret,
    customers: BTreeSet<String>,
    subscriptions: BTreeSet<String>,
}

impl Producers {
    /// Reads the tokens; what is wrong with them goes to `problems`, without showing any.
    pub(crate) fn load(section: &UsageSection, problems: &mut Problems) -> Self {
        let lines = secret::resolve_lines(
            "USAGE_PRODUCER_TOKEN",
            section.producer_token.as_ref(),
            "USAGE_PRODUCER_TOKEN_FILE",
            section.producer_token_file.as_deref(),
        );
        let mut producers = Self::default();
        match lines {
            Ok(lines) => {
                for (nth, line) in (1..).zip(&lines) {
                    match Producer::parse(line.expose()) {
                        Ok(producer) => producers.0.push(producer),
                        Err(what) => problems.add("usage.producer_token_file", &format!("token {nth} {what}")),
                    }
                }
            }
            Err(error) => problems.add("usage.producer_token_file", &error.to_string()),
        }
        producers
    }

    /// Whose token this is; every token is looked at, so that the time tells nothing.
    pub(crate) fn holder_of(&self, token: &[u8]) -> Option<&Producer> {
        let mut found = None;
        for producer in &self.0 {
            if bool::from(producer.token.expose().as_bytes().ct_eq(token)) {
                found = Some(producer);
            }
        }
        found
    }
}

impl Producer {
    fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_ascii_whitespace();
        let token = words.next().unwrap_or_default();
        if token.len() < SHORTEST {
            return Err(format!("has fewer than {SHORTEST} characters"));
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("holds characters that a header cannot".to_owned());
        }
        let mut producer =
            Self { token: Secret::from(token.to_owned()), customers: BTreeSet::new(), subscriptions: BTreeSet::new() };
        for word in words {
            match word.split_once(':') {
                Some(("customer", id)) if !id.is_empty() => drop(producer.customers.insert(id.to_owned())),
                Some(("subscription", id)) if !id.is_empty() => drop(producer.subscriptions.insert(id.to_owned())),
                _ => return Err("is followed by something other than customer:<id> and subscription:<id>".to_owned()),
            }
        }
        Ok(producer)
    }

    /// Whether the holder may report for everybody.
    pub(crate) fn is_unbound(&self) -> bool {
        self.customers.is_empty() && self.subscriptions.is_empty()
    }

    /// Whether the holder may report for this subscription, or this customer where the subscription is not known.
    pub(crate) fn may_report(&self, subscription: Option<&str>, customer: Option<&str>) -> bool {
        self.is_unbound()
            || subscription.is_some_and(|id| self.subscriptions.contains(id))
            || (subscription.is_none() && customer.is_some_and(|id| self.customers.contains(id)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn producers(text: &str) -> (Producers, Vec<String>) {
        let mut problems = Problems::default();
        let section = UsageSection { producer_token: Some(Secret::from(text.to_owned())), ..UsageSection::default() };
        let producers = Producers::load(&section, &mut problems);
        (producers, problems.lines(&crate::config::well_known()))
    }

    #[test]
    fn a_token_is_good_for_those_it_names() {
        let (producers, problems) =
            producers(&format!("{TOKEN}-all\n{TOKEN}-some customer:c-1 subscription:s-1 subscription:s-2\n"));
        assert_eq!(problems, Vec::<String>::new());
        let all = producers.holder_of(format!("{TOKEN}-all").as_bytes()).unwrap();
        let some = producers.holder_of(format!("{TOKEN}-some").as_bytes()).unwrap();
        for (subscription, customer, expected) in [
            (Some("s-1"), None, true),
            (Some("s-2"), Some("c-9"), true),
            (Some("s-3"), None, false),
            // What it names as a customer says nothing of whose subscription it is.
            (Some("s-3"), Some("c-1"), false),
            (None, Some("c-1"), true),
            (None, Some("c-2"), false),
            (None, None, false),
        ] {
            assert_eq!(some.may_report(subscription, customer), expected, "{subscription:?} {customer:?}");
            assert!(all.may_report(subscription, customer));
        }
        for wrong in ["", TOKEN, "0123456789abcdef-som", "0123456789abcdef-some "] {
            assert!(producers.holder_of(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_line_that_is_no_token_is_named_and_not_shown() {
        for (line, expected) in [
            ("short", "fewer than 16"),
            ("0123456789abcdef tenant:x", "other than customer"),
            ("0123456789abcdef customer:", "other than customer"),
            ("0123456789abcd\u{e4}f", "cannot"),
        ] {
            let (_, problems) = producers(&format!("{TOKEN}\n{line}"));
            assert_eq!(problems.len(), 1);
            assert!(problems[0].contains("token 2") && problems[0].contains(expected), "{problems:?}");
            assert!(!problems[0].contains(line), "{problems:?}");
        }
    }
}
