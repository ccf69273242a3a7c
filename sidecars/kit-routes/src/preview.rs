//! What the routes make of one event, without sending anything: for a person who writes routes.

use kit_delivery::Preview;
use kit_journal::StoredEvent;

use crate::built::BuiltSink;
use crate::jq::{Jq, JqError, Question};
use crate::sink::{as_input, changed};
use crate::table::{Decision, Table, Walk};

/// One route and the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The route's name.
    pub route: String,
    /// Why it does not match; `None` where it does.
    pub why_not: Option<String>,
}

/// One sink and the event.
#[derive(Debug)]
pub struct Reached {
    /// The sink's name.
    pub sink: String,
    /// Why it gets the event, or why it does not.
    pub why: String,
    /// What it would be sent.
    pub request: Option<Preview>,
}

/// Which routes match, and what each sink would get. `sinks` are in the order that the table was compiled with.
pub async fn explain(
    table: &Table,
    jq: &Jq,
    sinks: &[BuiltSink],
    event: &StoredEvent,
) -> (Vec<Explained>, Vec<Reached>) {
    let input = as_input(event);
    let (mut routes, mut answers) = (Vec::new(), Vec::new());
    for (nth, name) in table.names().enumerate() {
        let mut why_not = table.why_not(nth, event);
        let mut answer = None;
        if let (None, Some(program)) = (&why_not, table.filter(nth)) {
            let said = jq.ask(Question::Holds, &program, &input).await;
            why_not = match &said {
                Ok(said) if said == b"true" => None,
                Ok(_) => Some("its filter does not give true".to_owned()),
                Err(error) => Some(format!("its filter fails: {error}")),
            };
            answer = Some(said.map(|said| said == b"true"));
        }
        answers.push(answer);
        routes.push(Explained { route: name.to_owned(), why_not });
    }
    let mut reached = Vec::new();
    for (number, sink) in sinks.iter().enumerate() {
        let name = table.sinks().get(number).cloned().unwrap_or_default();
        let (why, request) = match reach(table, jq, number, &answers, event).await {
            Ok((why, changed)) => (why, changed.map(|event| sink.preview(&event))),
            Err(error) => (format!("parked: {error}"), None),
        };
        reached.push(Reached { sink: name, why, request });
    }
    (routes, reached)
}

async fn reach(
    table: &Table,
    jq: &Jq,
    number: usize,
    answers: &[Option<Result<bool, JqError>>],
    event: &StoredEvent,
) -> Result<(String, Option<StoredEvent>), JqError> {
    let answer = |route: usize| answers.get(route)?.as_ref()?.as_ref().ok().copied();
    let decision = match table.walk(number, event, answer) {
        Walk::Done(decision) => decision,
        // The only filter that is not known is one that has failed.
        Walk::Asks(route) => match answers.get(route).cloned().flatten() {
            Some(Err(error)) => {
                let named = |why| format!("filter of route {}: {why}", table.name(Some(route)));
                return Err(error.with(named));
            }
            _ => return Err(JqError::Away("the filter was not asked".to_owned())),
        },
    };
    let (route, transform) = match decision {
        Decision::Filtered => return Ok(("filtered: the routes lead it to other sinks".to_owned(), None)),
        Decision::Unrouted => return Ok(("filtered: no route leads it here".to_owned(), None)),
        Decision::Dropped(route) => {
            return Ok((format!("dropped by route {}", table.name(Some(route))), None));
        }
        Decision::Deliver { route, transform } => (route, transform),
    };
    let by = match route {
        Some(_) => format!("route {}", table.name(route)),
        None => "the default route".to_owned(),
    };
    let Some(program) = transform else { return Ok((format!("delivered, by {by}"), Some(event.clone()))) };
    let told = |why| format!("transform of {by}: {why}");
    let data = jq.ask(Question::Value, &program, &as_input(event)).await.map_err(|error| error.with(told))?;
    let event = changed(event, data).map_err(|why| JqError::Failed(told(why)))?;
    Ok((format!("delivered, changed by {by}"), Some(event)))
}
