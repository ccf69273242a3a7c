//! Events of other daemons as usage: what the rules of the configuration make of one. Decisions over values, without
//! I/O.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use kit_delivery::cloudevents::CloudEvent;
use kit_lago::usage::{FieldErrors, property};
use serde_json::value::{RawValue, to_raw_value};

use crate::cloudevents::{Usage, counted_as};
use crate::config::RuleSection;

/// More rules than this are a mistake.
const MOST_RULES: usize = 1_000;
/// Longest code of a metric, as for producers.
const LONGEST_CODE: usize = 500;

/// The rules in their order.
#[derive(Debug, Default)]
pub(crate) struct Rules(Vec<Rule>);

/// What one type of event counts as.
#[derive(Debug)]
struct Rule {
    event_type: Types,
    code: String,
    subscription: Option<Origin>,
    customer: Option<Origin>,
    properties: BTreeMap<String, Origin>,
}

/// The types that a rule is for.
#[derive(Debug)]
enum Types {
    One(String),
    Beginning(String),
}

/// Where a value comes from.
#[derive(Debug)]
enum Origin {
    /// The event's data, by the steps of a JSON pointer, and the pointer as it was written.
    Data(Vec<String>, String),
    Fixed(String),
}

/// A rule wants an event and cannot use it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {code} can be counted: {why}")]
pub(crate) struct Unusable {
    code: String,
    why: String,
}

impl Unusable {
    /// The event was made and not admitted, for these reasons.
    pub(crate) fn not_admitted(code: &str, errors: &FieldErrors) -> Self {
        let errors: Vec<String> =
            errors.iter().map(|(field, codes)| format!("{field}: {}", codes.join(", "))).collect();
        Self { code: code.to_owned(), why: errors.join("; ") }
    }
}

/// Usage that follows from an event, as a producer would report it.
#[derive(Debug)]
pub(crate) struct Counted<'r> {
    pub(crate) code: &'r str,
    pub(crate) usage: Box<RawValue>,
}

impl Rules {
    /// Reads the rules of the configuration.
    ///
    /// # Errors
    /// What is wrong with each of them, and how to mend it.
    pub(crate) fn read(sections: &[RuleSection]) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        if sections.len() > MOST_RULES {
            mistakes.push(format!("there may be at most {MOST_RULES} rules"));
        }
        let mut rules = Vec::with_capacity(sections.len());
        for (nth, section) in (1..).zip(sections) {
            match Rule::read(section) {
                Ok(rule) => rules.push(rule),
                Err(found) => mistakes.extend(found.iter().map(|what| format!("rule {nth}{}: {what}", name(section)))),
            }
        }
        if mistakes.is_empty() { Ok(Self(rules)) } else { Err(mistakes) }
    }

    /// What follows from an event, for each metric that it counts for. Of several rules for one metric only the first
    /// that wants the event is applied: nothing is counted twice.
    pub(crate) fn apply(&self, event: &CloudEvent<'_>) -> Vec<Result<Counted<'_>, Unusable>> {
        let mut codes = BTreeSet::new();
        let wanting = self.0.iter().filter(|rule| rule.wants(event));
        wanting.filter(|rule| codes.insert(rule.code.as_str())).map(|rule| rule.count(event)).collect()
    }
}

/// What a rule is called in a mistake.
fn name(section: &RuleSection) -> String {
    if section.event_type.is_empty() { String::new() } else { format!(" ({})", section.event_type) }
}

impl Rule {
    fn read(section: &RuleSection) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let event_type = Types::read(&section.event_type).unwrap_or_else(|what| {
            mistakes.push(format!("`type` {what}"));
            Types::One(String::new())
        });
        if section.code.trim().is_empty() || section.code.len() > LONGEST_CODE {
            mistakes.push(format!("`code` must be the code of a billable metric, of at most {LONGEST_CODE} bytes"));
        }
        let mut origin = |name: &str, text: &str| match Origin::read(text) {
            Ok(origin) => Some(origin),
            Err(what) => {
                mistakes.push(format!("`{name}` {what}"));
                None
            }
        };
        let subscription = section.subscription.as_deref().and_then(|text| origin("subscription", text));
        let customer = section.customer.as_deref().and_then(|text| origin("customer", text));
        let properties: BTreeMap<String, Origin> = section
            .properties
            .iter()
            .filter_map(|(name, text)| Some((name.clone(), origin(&format!("properties.{name}"), text)?)))
            .collect();
        if section.subscription.is_none() && section.customer.is_none() {
            mistakes.push("`subscription` must be set, or `customer`: where the event says who is billed".to_owned());
        }
        let rule = Self { event_type, code: section.code.clone(), subscription, customer, properties };
        if mistakes.is_empty() { Ok(rule) } else { Err(mistakes) }
    }

    fn wants(&self, event: &CloudEvent<'_>) -> bool {
        self.event_type.holds(&event.event_type)
            || event.type_alias.as_deref().is_some_and(|alias| self.event_type.holds(alias))
    }

    fn count(&self, event: &CloudEvent<'_>) -> Result<Counted<'_>, Unusable> {
        let nothing = |what: &str, origin: &Origin| Unusable {
            code: self.code.clone(),
            why: format!("the event has no {what} at {}", origin.shown()),
        };
        let id = |what: &str, origin: &Option<Origin>| {
            let Some(origin) = origin else { return Ok(None) };
            // Owned: the origin may outlive neither.
            origin.text(event.data).map(|text| Some(text.into_owned())).ok_or_else(|| nothing(what, origin))
        };
        let subscription = id("subscription", &self.subscription)?;
        let customer = id("customer", &self.customer)?;
        let mut properties: BTreeMap<&str, Cow<'_, RawValue>> = BTreeMap::new();
        for (name, origin) in &self.properties {
            let value = origin.value(event.data).ok_or_else(|| nothing(&format!("{name:?}"), origin))?;
            properties.insert(name, value);
        }
        let unwritable = |_| Unusable { code: self.code.clone(), why: "it cannot be written".to_owned() };
        let properties = to_raw_value(&properties).map_err(unwritable)?;
        let usage = Usage {
            transaction_id: counted_as(&event.source, &event.id, &self.code),
            external_subscription_id: subscription.as_deref(),
            external_customer_id: customer.as_deref(),
            code: &self.code,
            timestamp: event.time.as_deref(),
            properties: Some(&properties),
        };
        Ok(Counted { code: &self.code, usage: to_raw_value(&usage).map_err(unwritable)? })
    }
}

impl Types {
    fn read(text: &str) -> Result<Self, &'static str> {
        match text.strip_suffix('*') {
            _ if text.is_empty() => Err("must be set to the type of an event, for example lago.invoice.created"),
            Some(beginning) if !beginning.contains('*') => Ok(Self::Beginning(beginning.to_owned())),
            None if !text.contains('*') => Ok(Self::One(text.to_owned())),
            _ => Err("may have a `*` at its end only, for example lago.invoice.*"),
        }
    }

    fn holds(&self, event_type: &str) -> bool {
        match self {
            Self::One(own) => own == event_type,
            Self::Beginning(own) => event_type.starts_with(own.as_str()),
        }
    }
}

impl Origin {
    fn read(text: &str) -> Result<Self, &'static str> {
        if let Some(fixed) = text.strip_prefix('=') {
            return if fixed.trim().is_empty() {
                Err("has no text after the `=`")
            } else {
                Ok(Self::Fixed(fixed.to_owned()))
            };
        }
        let mut steps = text.split('/');
        if text.is_empty() || steps.next() != Some("") {
            return Err(
                "must be a JSON pointer into the event's data such as /invoice/lago_id, or `=` and a fixed text",
            );
        }
        let step = |step: &str| {
            let is_escaped = step.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
            is_escaped.then(|| step.replace("~1", "/").replace("~0", "~"))
        };
        let steps: Option<Vec<String>> = steps.map(step).collect();
        steps.map(|steps| Self::Data(steps, text.to_owned())).ok_or("has a `~` that is neither ~0 nor ~1")
    }

    fn shown(&self) -> &str {
        match self {
            Self::Data(_, pointer) => pointer,
            Self::Fixed(text) => text,
        }
    }

    /// An id: a text, or a number as it is written.
    fn text<'a>(&'a self, data: Option<&'a RawValue>) -> Option<Cow<'a, str>> {
        let steps = match self {
            Self::Fixed(text) => return Some(Cow::Borrowed(text)),
            Self::Data(steps, _) => steps,
        };
        let value = find(data?, steps)?.get();
        match value.as_bytes().first()? {
            b'"' => serde_json::from_str::<String>(value).ok().filter(|text| !text.trim().is_empty()).map(Cow::Owned),
            b'-' | b'0'..=b'9' => Some(Cow::Borrowed(value)),
            _ => None,
        }
    }

    /// A property: a text, a number or a truth value, as it is written.
    fn value<'a>(&'a self, data: Option<&'a RawValue>) -> Option<Cow<'a, RawValue>> {
        match self {
            Self::Fixed(text) => to_raw_value(text).ok().map(Cow::Owned),
            Self::Data(steps, _) => {
                let value = find(data?, steps)?;
                (!value.get().starts_with(['{', '[', 'n'])).then_some(Cow::Borrowed(value))
            }
        }
    }
}

/// A value within another, every digit as it is written.
///
/// Source: RFC 6901 section 4.
fn find<'a>(value: &'a RawValue, steps: &[String]) -> Option<&'a RawValue> {
    steps.iter().try_fold(value, |value, step| {
        if value.get().starts_with('{') {
            return property(value, step);
        }
        let is_index = step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
        let index: usize = step.parse().ok().filter(|_| is_index)?;
        serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.get(index).copied()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    const DATA: &str = r#"{"webhook_type":"invoice.created","invoice":{"total":0.10000000000000000001,"paid":false,"note":null,
        "a/b":{"~":"x"},"number":7,"customer":{"external_id":"c-1"},"subscriptions":[{"external_id":"s-0"},{"external_id":"s-1"}]}}"#;

    fn rule(event_type: &str) -> RuleSection {
        RuleSection {
            event_type: event_type.to_owned(),
            code: "invoices_issued".to_owned(),
            subscription: Some("/invoice/subscriptions/1/external_id".to_owned()),
            ..RuleSection::default()
        }
    }

    fn event(event_type: &str) -> CloudEvent<'static> {
        CloudEvent {
            id: "e-1".to_owned(),
            source: "lago/default".to_owned(),
            event_type: event_type.to_owned(),
            time: Some("2026-11-21T12:00:00Z".to_owned()),
            data: Some(serde_json::from_str(DATA).unwrap()),
            ..CloudEvent::default()
        }
    }

    fn applied(rules: &[RuleSection], event: &CloudEvent<'_>) -> Vec<Result<Value, String>> {
        let rules = Rules::read(rules).unwrap();
        let applied = rules.apply(event).into_iter();
        applied
            .map(|counted| {
                let counted = counted.map_err(|unusable| unusable.to_string())?;
                Ok(serde_json::from_str(counted.usage.get()).unwrap())
            })
            .collect()
    }

    #[test]
    fn an_event_counts_as_the_rule_says() {
        let properties =
            [("total", "/invoice/total"), ("paid", "/invoice/paid"), ("odd", "/invoice/a~1b/~0"), ("plan", "=1.50")];
        let section = RuleSection {
            customer: Some("=c-2".to_owned()),
            properties: properties.map(|(name, origin)| (name.to_owned(), origin.to_owned())).into(),
            ..rule("lago.invoice.created")
        };

        let rules = Rules::read(std::slice::from_ref(&section)).unwrap();
        let event = event("lago.invoice.created");
        let applied = rules.apply(&event);

        let counted = applied[0].as_ref().unwrap();
        let id = counted_as("lago/default", "e-1", "invoices_issued");
        assert_eq!(
            counted.usage.get(),
            [
                r#"{"transaction_id":""#,
                &id,
                r#"","external_subscription_id":"s-1","external_customer_id":"c-2","code":"invoices_issued","#,
                r#""timestamp":"2026-11-21T12:00:00Z","properties":{"odd":"x","paid":false,"plan":"1.50","#,
                r#""total":0.10000000000000000001}}"#,
            ]
            .concat()
        );
    }

    #[test]
    fn a_rule_is_for_one_type_or_for_all_that_begin_alike() {
        for (wanted, event_type, alias, expected) in [
            ("lago.invoice.created", "lago.invoice.created", None, true),
            ("lago.invoice.created", "lago.invoice.created.twice", None, false),
            ("lago.invoice.*", "lago.invoice.created", None, true),
            ("lago.invoice.*", "lago.invoice", None, false),
            ("*", "anything", None, true),
            ("lago.other", "lago.invoice.created", Some("lago.other"), true),
            ("lago.o*", "lago.invoice.created", Some("lago.other"), true),
        ] {
            let event = CloudEvent { type_alias: alias.map(str::to_owned), ..event(event_type) };
            assert_eq!(applied(&[rule(wanted)], &event).len(), usize::from(expected), "{wanted} {event_type}");
        }
    }

    #[test]
    fn an_event_counts_once_for_each_metric() {
        let other = RuleSection { code: "documents".to_owned(), ..rule("lago.*") };
        let again = RuleSection { subscription: Some("=s-9".to_owned()), ..rule("lago.*") };

        let applied = applied(&[rule("lago.invoice.created"), other, again], &event("lago.invoice.created"));

        let said = |nth: usize, field: &str| applied[nth].as_ref().unwrap()[field].clone();
        assert_eq!(applied.len(), 2);
        assert_eq!((said(0, "code"), said(1, "code")), (json!("invoices_issued"), json!("documents")));
        assert_eq!(said(0, "external_subscription_id"), "s-1", "the first rule of a metric");
        assert_ne!(said(0, "transaction_id"), said(1, "transaction_id"));
    }

    #[test]
    fn what_cannot_be_found_is_said_with_its_place_and_without_the_data() {
        for pointer in [
            "/invoice/subscriptions/2/external_id",
            "/invoice/subscriptions/01/external_id",
            "/invoice/subscriptions/-/external_id",
            "/invoice/subscriptions/",
            "/invoice/customer",
            "/invoice/subscriptions",
            "/invoice/note",
            "/invoice/paid",
            "/invoice/number/x",
            "/nothing",
            "/",
        ] {
            let section = RuleSection { subscription: Some(pointer.to_owned()), ..rule("*") };
            let expected = format!("no invoices_issued can be counted: the event has no subscription at {pointer}");
            assert_eq!(applied(&[section], &event("t")), [Err(expected)]);
        }
        let number = RuleSection { subscription: Some("/invoice/number".to_owned()), ..rule("*") };
        assert_eq!(applied(&[number], &event("t"))[0].as_ref().unwrap()["external_subscription_id"], "7");
        for pointer in ["/invoice/note", "/invoice/customer", "/invoice/subscriptions", "/x"] {
            let properties = BTreeMap::from([("p".to_owned(), pointer.to_owned())]);
            let unusable = applied(&[RuleSection { properties, ..rule("*") }], &event("t"));
            let expected = format!("no invoices_issued can be counted: the event has no \"p\" at {pointer}");
            assert_eq!(unusable, [Err(expected)]);
        }
        let without = CloudEvent { data: None, ..event("t") };
        assert!(applied(&[rule("*")], &without)[0].is_err());
    }

    #[test]
    fn a_wrong_rule_is_named_with_what_would_be_right() {
        let check = |change: fn(&mut RuleSection), expected: &str| {
            let mut wrong = rule("lago.invoice.created");
            change(&mut wrong);
            let mistakes = Rules::read(&[rule("a"), wrong]).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert!(mistakes[0].starts_with("rule 2") && mistakes[0].contains(expected), "{mistakes:?}");
        };
        check(|rule| rule.event_type.clear(), "rule 2: `type` must be set");
        check(
            |rule| rule.event_type = "lago.*.created".to_owned(),
            "(lago.*.created): `type` may have a `*` at its end",
        );
        check(|rule| rule.code.clear(), "(lago.invoice.created): `code` must be");
        check(|rule| rule.subscription = None, "`subscription` must be set, or `customer`");
        check(|rule| rule.subscription = Some("invoice".to_owned()), "`subscription` must be a JSON pointer");
        check(|rule| rule.subscription = Some(String::new()), "`subscription` must be a JSON pointer");
        check(|rule| rule.customer = Some("/a~2b".to_owned()), "`customer` has a `~` that is neither");
        check(|rule| rule.customer = Some("=".to_owned()), "`customer` has no text");
        check(
            |rule| drop(rule.properties.insert("gb".to_owned(), "1".to_owned())),
            "`properties.gb` must be a JSON pointer",
        );
    }
}
