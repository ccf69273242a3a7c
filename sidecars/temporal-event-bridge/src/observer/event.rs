//! The event that tells how a run ended: what is in it, and what is left out of it.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_journal::{Dedupe, EventHead, EventId, NewEvent};
use kit_temporal::api::common::v1::{Payload, Payloads};
use kit_temporal::api::failure::v1::Failure;
use kit_temporal::api::failure::v1::failure::FailureInfo;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use wildmatch::WildMatch;

use super::config::ObserverSection;
use super::outcome::{Ended, Kind};
use super::sweep::ServerTime;
use crate::direction::OBSERVED;

/// Causes of a failure that are told: chains are short, and what a worker sends has no bound.
const CAUSES: usize = 8;
/// Levels that the event has around a value, and some more for whoever puts the event into something.
const AROUND: usize = 32;
/// Longest text that is taken over as it is: a message, a reason.
const TEXT_BYTES: usize = 16 << 10;
/// What stands in the place of a value that is not to be told.
const REDACTED: &str = "[redacted]";

/// What is known of a run beside how it ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Run {
    pub(crate) workflow_id: String,
    pub(crate) run_id: String,
    /// The status that its listing or description shows.
    pub(crate) status: Option<Kind>,
    /// The first run of its chain, where the server tells.
    pub(crate) first_run_id: Option<String>,
    pub(crate) workflow_type: String,
    pub(crate) task_queue: String,
    pub(crate) started: Option<ServerTime>,
    pub(crate) closed: Option<ServerTime>,
    pub(crate) parent: Option<(String, String)>,
    pub(crate) memo: HashMap<String, Payload>,
    pub(crate) search_attributes: HashMap<String, Payload>,
}

/// CloudEvents `source` of a namespace's events.
pub(crate) fn source(namespace: &str) -> String {
    format!("temporal/{namespace}")
}

/// The deduplication key of the end of a run.
pub(crate) fn key(namespace: &str, run_id: &str) -> String {
    format!("{namespace}/{run_id}/closed")
}

/// The id of the event about the end of a run: known without asking anybody.
pub(crate) fn id(namespace: &str, run_id: &str) -> EventId {
    EventId::derive(&source(namespace), &key(namespace, run_id), None)
}

/// What is told and what is not.
#[derive(Debug)]
pub(crate) struct Teller {
    with_result: bool,
    with_failure: bool,
    with_memo: bool,
    search_attributes: Vec<WildMatch>,
    /// Names of members whose value is not told, in lower case.
    redact: Vec<WildMatch>,
    payload_bytes: usize,
}

impl Teller {
    pub(crate) fn new(section: &ObserverSection) -> Self {
        let globs = |globs: &[String]| globs.iter().map(|glob| WildMatch::new(glob)).collect();
        let lower: Vec<String> = section.redact.iter().map(|name| name.to_lowercase()).collect();
        Self {
            with_result: section.result,
            with_failure: section.failure,
            with_memo: section.memo,
            search_attributes: globs(&section.search_attributes),
            redact: globs(&lower),
            payload_bytes: section.payload_limit_bytes,
        }
    }

    /// The event about the end of a run.
    pub(crate) fn event(&self, namespace: &str, run: &Run, ended: &Ended) -> NewEvent {
        let key = key(namespace, &run.run_id);
        let source = source(namespace);
        let id = EventId::derive(&source, &key, None);
        let kind = format!("temporal.workflow.{}", ended.kind.word());
        let head = EventHead {
            json: true,
            scope: Some(OBSERVED.to_owned()),
            time: run.closed.and_then(rfc3339),
            ..EventHead::new(id, source, kind, format!("workflow/{}", run.workflow_id), key)
        };
        let body = self.data(namespace, run, ended).get().as_bytes().to_vec();
        NewEvent { head, body, dedupe: Dedupe::Key }
    }

    fn data(&self, namespace: &str, run: &Run, ended: &Ended) -> Raw {
        let mut data = BTreeMap::new();
        let mut put = |name: &'static str, value: Option<Raw>| {
            if let Some(value) = value {
                data.insert(name, value);
            }
        };
        let text = |text: &str| (!text.is_empty()).then(|| raw(text));
        put("namespace", text(namespace));
        put("workflow_id", text(&run.workflow_id));
        put("run_id", text(&run.run_id));
        put("first_run_id", run.first_run_id.as_deref().and_then(text));
        put("workflow_type", text(&run.workflow_type));
        put("task_queue", text(&run.task_queue));
        put("status", text(ended.kind.word()));
        if ended.run_status != ended.kind {
            put("run_status", text(ended.run_status.word()));
        }
        put("start_time", run.started.and_then(rfc3339).map(|at| raw(&at)));
        put("close_time", run.closed.and_then(rfc3339).map(|at| raw(&at)));
        let parent = run.parent.as_ref();
        put(
            "parent",
            parent.map(|(workflow_id, run_id)| raw(&json!({ "workflow_id": workflow_id, "run_id": run_id }))),
        );
        put("next_run_id", ended.next_run_id.as_deref().and_then(text));
        put("continued_by", ended.initiator.and_then(text));
        put("retry_state", ended.retry_state.and_then(text));
        if self.with_result {
            let name = if matches!(ended.kind, Kind::Canceled | Kind::Terminated) { "details" } else { "result" };
            put(name, ended.result.as_ref().and_then(|payloads| self.payloads(payloads)));
        }
        if self.with_failure {
            put("failure", ended.failure.as_ref().map(|failure| self.failure(failure)));
            put("reason", ended.reason.as_deref().map(|reason| raw(&cut(reason))));
            put("identity", ended.identity.as_deref().map(|identity| raw(&cut(identity))));
        }
        if self.with_memo {
            put("memo", self.fields(run.memo.iter()));
        }
        let chosen = |name: &str| self.search_attributes.iter().any(|glob| glob.matches(name));
        put("search_attributes", self.fields(run.search_attributes.iter().filter(|(name, _)| chosen(name))));
        raw(&data)
    }

    /// Named payloads; `None` where there are none.
    fn fields<'a>(&self, fields: impl Iterator<Item = (&'a String, &'a Payload)>) -> Option<Raw> {
        let mut left = self.payload_bytes;
        let sorted: BTreeMap<&String, &Payload> = fields.collect();
        let told = sorted.into_iter().map(|(name, payload)| {
            let value = if self.is_redacted(name) { raw(REDACTED) } else { self.payload(payload, &mut left) };
            (name, value)
        });
        let told: BTreeMap<&String, Raw> = told.collect();
        (!told.is_empty()).then(|| raw(&told))
    }

    /// One value as itself, several as a list, none as nothing.
    fn payloads(&self, payloads: &Payloads) -> Option<Raw> {
        let mut left = self.payload_bytes;
        match payloads.payloads.as_slice() {
            [] => None,
            [one] => Some(self.payload(one, &mut left)),
            several => {
                let several: Vec<Raw> = several.iter().map(|payload| self.payload(payload, &mut left)).collect();
                Some(raw(&several))
            }
        }
    }

    /// JSON as it was written; what not everybody can read as it came, in Base64; what is larger than there is room for
    /// as its size.
    fn payload(&self, payload: &Payload, left: &mut usize) -> Raw {
        let encoding = payload.metadata.get("encoding").map(|bytes| String::from_utf8_lossy(bytes));
        let encoding = encoding.as_deref().unwrap_or_default();
        if encoding == "binary/null" {
            return raw(&());
        }
        let bytes = payload.data.len();
        let omitted = |why: &str| raw(&json!({ "omitted": why, "bytes": bytes, "encoding": cut(encoding) }));
        if bytes > *left {
            return omitted("too large");
        }
        *left -= bytes;
        let is_json = matches!(encoding, "json/plain" | "json/protobuf");
        let value = serde_json::from_slice::<&RawValue>(&payload.data).ok().filter(|_| is_json);
        // Half of a surrogate pair, a number beyond all numbers, a hundred levels: JSON, and yet the whole event could not be
        // read by us or by others.
        if let Some(value) = value.filter(|value| can_be_read(value)) {
            return self.redact(value);
        }
        if !self.redact.is_empty() && encoding != "binary/encrypted" {
            // Nobody can say what is in it.
            return omitted(match is_json {
                true => "cannot be read, and members are redacted",
                false => "not JSON, and members are redacted",
            });
        }
        raw(&json!({ "encoding": cut(encoding), "base64": STANDARD.encode(&payload.data) }))
    }

    /// Message, type and details of a failure and of its causes. Stack traces stay where they are: they are for whoever
    /// looks at the workflow, and show more than an event should.
    fn failure(&self, failure: &Failure) -> Raw {
        let mut causes = Vec::new();
        let mut next = Some(failure);
        while let Some(failure) = next.filter(|_| causes.len() < CAUSES) {
            causes.push(failure);
            next = failure.cause.as_deref();
        }
        let innermost_first = causes.into_iter().rev();
        let told = innermost_first.fold(None, |cause: Option<Raw>, failure| Some(self.one_failure(failure, cause)));
        told.unwrap_or_else(|| raw(&()))
    }

    fn one_failure(&self, failure: &Failure, cause: Option<Raw>) -> Raw {
        let mut told = BTreeMap::from([("message", raw(&cut(&failure.message)))]);
        let (kind, details) = match &failure.failure_info {
            Some(FailureInfo::ApplicationFailureInfo(info)) => {
                if info.non_retryable {
                    told.insert("non_retryable", raw(&true));
                }
                (cut(&info.r#type), info.details.as_ref())
            }
            Some(FailureInfo::TimeoutFailureInfo(_)) => ("timeout".to_owned(), None),
            Some(FailureInfo::CanceledFailureInfo(info)) => ("canceled".to_owned(), info.details.as_ref()),
            Some(FailureInfo::TerminatedFailureInfo(_)) => ("terminated".to_owned(), None),
            Some(FailureInfo::ServerFailureInfo(_)) => ("server".to_owned(), None),
            Some(FailureInfo::ActivityFailureInfo(info)) => {
                let name = info.activity_type.as_ref().map(|kind| kind.name.as_str()).unwrap_or_default();
                told.insert("activity", raw(&cut(name)));
                ("activity".to_owned(), None)
            }
            Some(FailureInfo::ChildWorkflowExecutionFailureInfo(info)) => {
                let name = info.workflow_type.as_ref().map(|kind| kind.name.as_str()).unwrap_or_default();
                told.insert("child_workflow", raw(&cut(name)));
                ("child_workflow".to_owned(), None)
            }
            _ => (String::new(), None),
        };
        if !kind.is_empty() {
            told.insert("type", raw(&kind));
        }
        if let Some(details) = details.and_then(|details| self.payloads(details)) {
            told.insert("details", details);
        }
        if let Some(cause) = cause {
            told.insert("cause", cause);
        }
        raw(&told)
    }

    fn is_redacted(&self, name: &str) -> bool {
        !self.redact.is_empty() && {
            let name = name.to_lowercase();
            self.redact.iter().any(|glob| glob.matches(&name))
        }
    }

    /// Numbers stay as they were written, digit by digit.
    fn redact(&self, value: &RawValue) -> Raw {
        if self.redact.is_empty() {
            return value.to_owned();
        }
        let text = value.get();
        if text.starts_with('{')
            && let Ok(members) = serde_json::from_str::<BTreeMap<String, &RawValue>>(text)
        {
            let told = members.into_iter().map(|(name, member)| {
                let told = if self.is_redacted(&name) { raw(REDACTED) } else { self.redact(member) };
                (name, told)
            });
            return raw(&told.collect::<BTreeMap<String, Raw>>());
        }
        if text.starts_with('[')
            && let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(text)
        {
            return raw(&elements.into_iter().map(|element| self.redact(element)).collect::<Vec<Raw>>());
        }
        value.to_owned()
    }
}

/// A piece of JSON, as it is written.
type Raw = Box<RawValue>;

/// Texts, truth values and lists and maps with texts as keys: nothing of that can fail to be written.
fn raw<T: Serialize + ?Sized>(value: &T) -> Raw {
    to_raw_value(value).unwrap_or_default()
}

/// Whether whoever reads the whole event can read this in it.
fn can_be_read(value: &RawValue) -> bool {
    let (before, after) = ("[".repeat(AROUND), "]".repeat(AROUND));
    serde_json::from_str::<Value>(&format!("{before}{}{after}", value.get())).is_ok()
}

/// RFC 3339 in UTC with microseconds.
pub(crate) fn rfc3339(at: ServerTime) -> Option<String> {
    Some(format!("{:.6}", jiff::Timestamp::from_microsecond(at.0).ok()?))
}

/// At most [`TEXT_BYTES`], cut between characters.
fn cut(text: &str) -> String {
    if text.len() <= TEXT_BYTES {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit_temporal::api::failure::v1::ApplicationFailureInfo;
    use kit_temporal::payload;

    use super::*;

    fn teller(change: impl FnOnce(&mut ObserverSection)) -> Teller {
        let mut section = ObserverSection::default();
        change(&mut section);
        Teller::new(&section)
    }

    fn encoded(encoding: &str, data: &[u8]) -> Payload {
        let metadata = [("encoding".to_owned(), encoding.as_bytes().to_vec())].into();
        Payload { metadata, data: data.to_vec(), ..Payload::default() }
    }

    fn completed(result: Vec<Payload>) -> Ended {
        Ended { result: Some(Payloads { payloads: result }), ..Ended::by_status(Some(Kind::Completed)) }
    }

    fn run() -> Run {
        Run { workflow_id: "w/1".to_owned(), run_id: "r".to_owned(), ..Run::default() }
    }

    fn data(teller: &Teller, run: &Run, ended: &Ended) -> Value {
        serde_json::from_slice(&teller.event("n", run, ended).body).unwrap()
    }

    #[test]
    fn an_event_is_known_by_its_run_alone() {
        let teller = teller(|_| {});
        let first = teller.event("n", &run(), &completed(vec![]));
        let other = teller.event("n", &Run { closed: Some(ServerTime(7)), ..run() }, &Ended::unknown());

        assert_eq!((first.head.id, first.dedupe), (id("n", "r"), Dedupe::Key));
        assert_eq!((other.head.id, &other.head.key), (first.head.id, &first.head.key));
        assert_eq!((first.head.source.as_str(), first.head.subject.as_str()), ("temporal/n", "workflow/w/1"));
        assert!(crate::direction::is_outcome(&first.head));
        assert_eq!(other.head.time.as_deref(), Some("1970-01-01T00:00:00.000007Z"));
        assert_ne!(id("n", "s"), first.head.id);
    }

    /// Receivers deduplicate by it, also after an upgrade.
    #[test]
    fn the_derivation_is_pinned() {
        assert_eq!(
            id("default", "01a2038e-871c-76cc-b5f0-788cc629850c").to_string(),
            "f0829507-400f-8d6f-bd65-cd47be4246df"
        );
    }

    #[test]
    fn results_are_told_as_what_they_are() {
        let teller = teller(|_| {});
        let result = |result: Vec<Payload>| data(&teller, &run(), &completed(result))["result"].clone();

        assert_eq!(result(vec![payload::json(r#"{"a":[1.50]}"#)]), json!({ "a": [1.50] }));
        assert_eq!(result(vec![encoded("binary/null", b"")]), Value::Null);
        assert_eq!(result(vec![]), Value::Null);
        assert_eq!(result(vec![payload::json("1"), payload::json("2")]), json!([1, 2]));
        let bytes = json!({ "encoding": "binary/encrypted", "base64": "AAE=" });
        assert_eq!(result(vec![encoded("binary/encrypted", &[0, 1])]), bytes);
        assert_eq!(result(vec![payload::json("{broken")])["base64"], json!("e2Jyb2tlbg=="));
    }

    /// Others' libraries write a text that was cut through an emoji like this.
    #[test]
    fn json_that_not_everybody_can_read_is_told_as_it_came() {
        let open = teller(|_| {});
        let redacting = teller(|section| section.redact = vec!["token".to_owned()]);
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let (too_deep, deepest) = (deep(5_000), deep(120));
        for written in
            [r#""\ud800""#, r#"{"a":"\ud800"}"#, r#"{"\ud800":1}"#, "1e400", "[1e400]", &*too_deep, &*deepest]
        {
            let ended = completed(vec![payload::json(written)]);

            // The whole of it is read here.
            let told = data(&open, &run(), &ended)["result"].clone();

            assert_eq!(told, json!({ "encoding": "json/plain", "base64": STANDARD.encode(written) }));
            let told = data(&redacting, &run(), &ended)["result"].clone();
            assert_eq!(told["omitted"], json!("cannot be read, and members are redacted"), "{written}");
        }
        assert!(data(&open, &run(), &completed(vec![payload::json(deep(60))]))["result"].is_array());
    }

    #[test]
    fn numbers_stay_as_they_were_written() {
        let written = r#"{"amount":1.50,"big":123456789012345678901234567890,"list":[0.1e-7,{"token":9,"x":10.0}]}"#;
        let body = |teller: &Teller| {
            let event = teller.event("n", &run(), &completed(vec![payload::json(written)]));
            String::from_utf8(event.body).unwrap()
        };

        assert!(body(&teller(|_| {})).contains(written));
        let redacted = body(&teller(|section| section.redact = vec!["token".to_owned()]));
        assert!(redacted.contains(&written.replace("\"token\":9", "\"token\":\"[redacted]\"")), "{redacted}");
    }

    #[test]
    fn what_is_too_large_is_told_as_its_size() {
        let teller = teller(|section| section.payload_limit_bytes = 10);
        let several = vec![payload::json("123456"), payload::json("12345"), payload::json("1234")];

        let result = &data(&teller, &run(), &completed(several))["result"];

        assert_eq!(result, &json!([123_456, { "omitted": "too large", "bytes": 5, "encoding": "json/plain" }, 1234]));
    }

    #[test]
    fn members_are_redacted_wherever_they_are() {
        let teller = teller(|section| {
            section.redact = vec!["card*".to_owned(), "TOKEN".to_owned()];
            section.search_attributes = vec!["*".to_owned()];
        });
        let secret = r#"{"Card_Number":"s3cret","deep":[{"token":{"x":"s3cret"},"open":1}]}"#;
        let fields =
            |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), payload::json("\"s3cret\""))).collect();
        let known = Run { memo: fields(&["token"]), search_attributes: fields(&["CardTier"]), ..run() };
        let mut ended = completed(vec![payload::json(secret), encoded("binary/plain", b"s3cret")]);
        let info = ApplicationFailureInfo { details: Some(payload::one(payload::json(secret))), ..Default::default() };
        let failure = Failure { failure_info: Some(FailureInfo::ApplicationFailureInfo(info)), ..Default::default() };
        ended.failure = Some(failure);

        let told = data(&teller, &known, &ended);

        assert!(!told.to_string().contains("s3cret") && !told.to_string().contains("czNjcmV0"), "{told}");
        assert_eq!(told["result"][0]["deep"][0]["open"], json!(1));
        assert_eq!(told["memo"]["token"], json!(REDACTED));
    }

    #[test]
    fn what_is_not_wanted_is_left_out() {
        let teller = teller(|section| (section.result, section.failure, section.memo) = (false, false, false));
        let field = [("a".to_owned(), payload::json("1"))];
        let known = Run { memo: field.clone().into(), search_attributes: field.into(), ..run() };
        let mut ended = completed(vec![payload::json("1")]);
        (ended.failure, ended.reason) = (Some(Failure::default()), Some("r".to_owned()));

        let told = data(&teller, &known, &ended);

        let members: Vec<&String> = told.as_object().unwrap().keys().collect();
        assert_eq!(members, ["namespace", "run_id", "status", "workflow_id"]);
    }

    #[test]
    fn a_failure_tells_its_causes_up_to_a_bound_and_no_stack_traces() {
        let mut failure = Failure { message: "the first".to_owned(), ..Default::default() };
        for number in 0..100 {
            let (message, stack_trace) = (format!("number {number}"), "at s3cret".to_owned());
            failure = Failure { message, stack_trace, cause: Some(Box::new(failure)), ..Default::default() };
        }
        let mut ended = Ended::unknown();
        (ended.kind, ended.failure) = (Kind::Failed, Some(Failure { message: "é".repeat(TEXT_BYTES), ..failure }));

        let told = data(&teller(|_| {}), &run(), &ended);

        let mut causes = 0;
        let mut next = &told["failure"];
        while next.is_object() {
            (causes, next) = (causes + 1, &next["cause"]);
        }
        assert_eq!(causes, CAUSES);
        assert!(!told.to_string().contains("s3cret"), "{told}");
        assert!(told["failure"]["message"].as_str().unwrap().len() <= TEXT_BYTES + "…".len());
    }
}
