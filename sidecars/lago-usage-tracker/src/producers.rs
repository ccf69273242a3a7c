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
    /// The same when its token is replaced by another.
    name: String,
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
                        Ok(producer) if producers.0.iter().any(|known| known.token == producer.token) => {
                            problems.add("usage.producer_token_file", &format!("token {nth} is there already"));
                        }
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
        let mut producer = Self {
            token: Secret::from(token.to_owned()),
            name: String::new(),
            customers: BTreeSet::new(),
            subscriptions: BTreeSet::new(),
        };
        for word in words {
            match word.split_once(':') {
                Some(("name", name)) if !name.is_empty() && producer.name.is_empty() => producer.name = name.to_owned(),
                Some(("customer", id)) if !id.is_empty() => drop(producer.customers.insert(id.to_owned())),
                Some(("subscription", id)) if !id.is_empty() => drop(producer.subscriptions.insert(id.to_owned())),
                _ => {
                    return Err("is followed by something other than name:<name>, customer:<id> and subscription:<id>"
                        .to_owned());
                }
            }
        }
        Ok(producer)
    }

    /// Who publishes to the queue: whoever the broker lets, for everybody. There is no token for it.
    pub(crate) fn of_queue() -> Self {
        Self {
            token: Secret::from(String::new()),
            name: "queue".to_owned(),
            customers: BTreeSet::new(),
            subscriptions: BTreeSet::new(),
        }
    }

    /// Whether the holder may report for everybody.
    pub(crate) fn is_unbound(&self) -> bool {
        self.customers.is_empty() && self.subscriptions.is_empty()
    }

    /// Whether the holder may report for this subscription. `is_of` says whether it is a customer's, as far as is known.
    pub(crate) fn may_report(&self, subscription: Option<&str>, is_of: impl Fn(&str, &str) -> bool) -> bool {
        let Some(subscription) = subscription else { return self.is_unbound() };
        self.is_unbound()
            || self.subscriptions.contains(subscription)
            || self.customers.iter().any(|customer| is_of(subscription, customer))
    }

    /// Whether the holder may name this customer in an event.
    pub(crate) fn may_name(&self, customer: Option<&str>) -> bool {
        self.is_unbound() || customer.is_none_or(|customer| self.customers.contains(customer))
    }

    /// Whether what Lago says now could allow more.
    pub(crate) fn is_bound_to_customers(&self) -> bool {
        !self.customers.is_empty()
    }

    /// Its name, where it has one.
    pub(crate) fn name(&self) -> &str {
        &self.name
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
            producers(&format!("{TOKEN}-all\n{TOKEN}-some name:apps customer:c-1 subscription:s-1 subscription:s-2\n"));
        assert_eq!(problems, Vec::<String>::new());
        let all = producers.holder_of(format!("{TOKEN}-all").as_bytes()).unwrap();
        let some = producers.holder_of(format!("{TOKEN}-some").as_bytes()).unwrap();
        let is_of = |subscription: &str, customer: &str| (subscription, customer) == ("s-7", "c-1");
        for (subscription, expected) in
            [(Some("s-1"), true), (Some("s-2"), true), (Some("s-3"), false), (Some("s-7"), true), (None, false)]
        {
            assert_eq!(some.may_report(subscription, is_of), expected, "{subscription:?}");
            assert!(all.may_report(subscription, is_of));
        }
        for (customer, expected) in [(None, true), (Some("c-1"), true), (Some("c-2"), false)] {
            assert_eq!((some.may_name(customer), all.may_name(customer)), (expected, true), "{customer:?}");
        }
        assert_eq!((some.name(), all.name()), ("apps", ""));
        for wrong in ["", TOKEN, "0123456789abcdef-som", "0123456789abcdef-some "] {
            assert!(producers.holder_of(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_line_that_is_no_token_is_named_and_not_shown() {
        for (line, expected) in [
            ("short", "fewer than 16"),
            ("0123456789abcdef tenant:x", "other than name"),
            ("0123456789abcdef customer:", "other than name"),
            ("0123456789abcd\u{e4}f", "cannot"),
            ("0123456789abcdef", "is there already"),
        ] {
            let (_, problems) = producers(&format!("{TOKEN}\n{line}"));
            assert_eq!(problems.len(), 1);
            assert!(problems[0].contains("token 2") && problems[0].contains(expected), "{problems:?}");
            assert!(!problems[0].contains(line), "{problems:?}");
        }
    }
}
