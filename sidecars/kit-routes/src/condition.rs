//! Conditions on fields of an event.

use std::borrow::Cow;

use kit_journal::StoredEvent;
use serde_json::Value;

use crate::config::WhenSection;
use crate::data::Data;

/// An event and its body as JSON, parsed when the first condition asks for it.
#[derive(Debug)]
pub(crate) struct Looked<'a> {
    event: &'a StoredEvent,
    data: Data<'a>,
}

impl<'a> Looked<'a> {
    pub(crate) fn new(event: &'a StoredEvent) -> Self {
        Self { event, data: Data::new(event) }
    }

    pub(crate) fn event(&self) -> &'a StoredEvent {
        self.event
    }
}

/// Where a field is.
#[derive(Clone, Debug)]
enum Field {
    Id,
    Source,
    Type,
    TypeAlias,
    Subject,
    Tenant,
    /// The steps into the body.
    Data(Vec<String>),
}

#[derive(Clone, Debug)]
enum Test {
    OneOf(Vec<Value>),
    Exists(bool),
    Not(Value),
}

/// A condition that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    name: String,
    field: Field,
    test: Test,
}

impl Condition {
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn compile(section: &WhenSection) -> Result<Self, String> {
        let field = match section.field.as_str() {
            "id" => Field::Id,
            "source" => Field::Source,
            "type" => Field::Type,
            "typealias" => Field::TypeAlias,
            "subject" => Field::Subject,
            "tenantid" => Field::Tenant,
            "data" => Field::Data(Vec::new()),
            path => match path.strip_prefix("data.") {
                Some(steps) if steps.split('.').all(|step| !step.is_empty()) => {
                    Field::Data(steps.split('.').map(str::to_owned).collect())
                }
                _ => {
                    let known = "id, source, type, typealias, subject, tenantid, or data. and a path into the body";
                    return Err(format!("field {path:?} is none of {known}"));
                }
            },
        };
        let test = match section {
            WhenSection { equals: Some(value), one_of: None, exists: None, not: None, .. } => {
                Test::OneOf(vec![value.clone()])
            }
            WhenSection { equals: None, one_of: Some(values), exists: None, not: None, .. } => {
                Test::OneOf(values.clone())
            }
            WhenSection { equals: None, one_of: None, exists: Some(exists), not: None, .. } => Test::Exists(*exists),
            WhenSection { equals: None, one_of: None, exists: None, not: Some(value), .. } => Test::Not(value.clone()),
            _ => return Err("exactly one of equals, one_of, exists and not must be set".to_owned()),
        };
        let simple = |value: &Value| !matches!(value, Value::Array(_) | Value::Object(_));
        let fit = match &test {
            Test::OneOf(values) => !values.is_empty() && values.iter().all(simple),
            Test::Not(value) => simple(value),
            Test::Exists(_) => true,
        };
        if !fit {
            return Err("values must be texts, numbers, true or false; for anything else there is filter".to_owned());
        }
        Ok(Self { name: section.field.clone(), field, test })
    }

    pub(crate) fn holds(&self, looked: &Looked<'_>) -> bool {
        let found = self.find(looked);
        match &self.test {
            Test::OneOf(wanted) => found.is_some_and(|found| wanted.iter().any(|wanted| same(&found, wanted))),
            Test::Exists(wanted) => found.is_some() == *wanted,
            Test::Not(unwanted) => !found.is_some_and(|found| same(&found, unwanted)),
        }
    }

    /// What it wants and what there is, for a person.
    pub(crate) fn explain(&self, looked: &Looked<'_>) -> String {
        let found = match self.find(looked) {
            Some(value) => format!("it is {}", value.to_string().chars().take(80).collect::<String>()),
            None => "it is not there".to_owned(),
        };
        let list = |values: &[Value]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        match &self.test {
            Test::OneOf(values) => format!("{} must be {}, {found}", self.name, list(values)),
            Test::Exists(true) => format!("{} must be there, {found}", self.name),
            Test::Exists(false) => format!("{} must not be there, {found}", self.name),
            Test::Not(value) => format!("{} must not be {value}, {found}", self.name),
        }
    }

    fn find<'e>(&self, looked: &'e Looked<'_>) -> Option<Cow<'e, Value>> {
        let head = &looked.event.head;
        let text = |text: &str| Some(Cow::Owned(Value::from(text)));
        match &self.field {
            Field::Id => text(&head.id.to_string()),
            Field::Source => text(&head.source),
            Field::Type => text(&head.event_type),
            Field::TypeAlias => text(head.alias.as_deref()?),
            Field::Subject => text(&head.subject),
            Field::Tenant => text(head.tenant.as_deref()?),
            Field::Data(steps) => looked.data.find(steps),
        }
    }
}

/// 1 and 1.0 are the same number.
fn same(found: &Value, wanted: &Value) -> bool {
    found == wanted
        || match (found, wanted) {
            (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64()),
            _ => false,
        }
}
