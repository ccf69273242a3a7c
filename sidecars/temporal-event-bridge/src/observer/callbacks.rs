//! Completion callbacks: Temporal says that a workflow has ended. What it says is not believed, only that it is time to look.
//!
//! Any 4xx is the end of a callback, for ever; 5xx is tried again. So the answer is 204 or 503 and nothing else
//! (tried on 1.29.1 and 1.32.0).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::post;
use kit::secret::Secret;
use kit::serve::{BodyRules, read_body};
use kit::telemetry::Seldom;
use kit_temporal::api::common::v1::Callback;
use kit_temporal::api::common::v1::callback::{Nexus, Variant};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::sync::{mpsc, oneshot};

use super::metrics::ObserverMetrics;
use super::worker::Asked;

/// Where callbacks arrive on the public listener.
const PATH: &str = "/webhooks/temporal";
/// Temporal waits ten seconds (`callback.request.timeout`).
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// Results are read and thrown away, so that the connection can be used again.
const BODY_BYTES: usize = 4 << 20;
/// How long a server that has refused a callback is not asked to take another.
const AGAIN: Duration = Duration::from_secs(600);
/// Callbacks that wait for a look, of each namespace; further ones come again.
pub(crate) const WAITING: usize = 256;

/// What the receiving side needs.
#[derive(Debug)]
pub(crate) struct Callbacks {
    pub(crate) token: Secret,
    pub(crate) asked: HashMap<String, mpsc::Sender<Asked>>,
    pub(crate) metrics: ObserverMetrics,
    pub(crate) said: Seldom,
}

/// What is attached to workflows that are started, so that their end is told here.
#[derive(Clone, Debug)]
pub struct Attached {
    url: String,
    token: Secret,
    /// The server has refused one: not before this it is tried again.
    not_before: Arc<Mutex<Option<Instant>>>,
}

impl Attached {
    pub(crate) fn new(url: &str, token: Secret) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), token, not_before: Arc::default() }
    }

    /// Whether the server may take one now.
    pub fn is_wanted(&self) -> bool {
        let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        not_before.is_none_or(|at| at <= Instant::now())
    }

    /// The server takes none: for a while nothing is attached. Somebody may be about to allow the address.
    pub fn refused(&self) {
        *self.not_before.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + AGAIN);
    }

    /// The callback of a workflow.
    pub fn to(&self, namespace: &str, workflow_id: &str) -> Callback {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let (namespace, workflow_id) = (encoded(namespace), encoded(workflow_id));
        let url = format!("{}{PATH}?namespace={namespace}&workflow_id={workflow_id}", self.url);
        let header = [("authorization".to_owned(), format!("Bearer {}", self.token.expose()))].into();
        Callback { variant: Some(Variant::Nexus(Nexus { url, header })), ..Callback::default() }
    }
}

/// The route that takes callbacks.
pub(crate) fn router(callbacks: Arc<Callbacks>) -> Router {
    Router::new().route(PATH, post(take)).with_state(callbacks)
}

async fn take(
    State(callbacks): State<Arc<Callbacks>>,
    Extension(rules): Extension<Arc<BodyRules>>,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> StatusCode {
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    // Compared in constant time. A token that is being replaced must not cost a callback its life.
    let is_ours = shown.is_some_and(|shown| Secret::from(shown.to_owned()) == callbacks.token);
    if !is_ours {
        callbacks.metrics.callback_refused();
        if callbacks.said.may() {
            tracing::warn!(
                "a completion callback without the right token is answered 503, this is said at most once a minute: Temporal tries it again, \
                 and ends are found by looking meanwhile"
            );
        }
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let _ = read_body(&headers, body, BODY_BYTES, &rules).await;
    let Some((namespace, workflow_id, run_id)) = whose(&headers, &uri) else {
        // Nothing that we have attached: there is nothing to look at, now or later.
        return StatusCode::NO_CONTENT;
    };
    let Some(asked) = callbacks.asked.get(&namespace) else { return StatusCode::NO_CONTENT };
    callbacks.metrics.callback(&namespace);
    let (answer, answered) = oneshot::channel();
    if asked.try_send(Asked { workflow_id, run_id, answer }).is_err() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    match tokio::time::timeout(ANSWER_WITHIN, answered).await {
        Ok(Ok(true)) => StatusCode::NO_CONTENT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Namespace, workflow and run. The run is in the link that Temporal sends along; without it the newest one is meant.
fn whose(headers: &HeaderMap, uri: &Uri) -> Option<(String, String, String)> {
    let links = headers.get_all("nexus-link").into_iter().filter_map(|link| link.to_str().ok());
    let asked = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let asked: HashMap<_, _> = asked.collect();
    let namespace = asked.get("namespace")?.to_string();
    let workflow_id = asked.get("workflow_id")?.to_string();
    let linked = links.flat_map(|links| links.split(',')).find_map(linked);
    let run_id = linked.filter(|(of, workflow, _)| *of == namespace && *workflow == workflow_id);
    Some((namespace, workflow_id, run_id.map(|(_, _, run_id)| run_id).unwrap_or_default()))
}

/// `<temporal:///namespaces/NS/workflows/WORKFLOW/RUN/history?…>; type="…"`.
fn linked(link: &str) -> Option<(String, String, String)> {
    let (address, _) = link.trim().strip_prefix('<')?.split_once('>')?;
    let path = address.strip_prefix("temporal:///")?.split('?').next()?;
    let mut parts = path.split('/').map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned());
    let mut after = |word: &str| (parts.next()? == word).then(|| parts.next())?;
    let namespace = after("namespaces")?;
    let workflow_id = after("workflows")?;
    Some((namespace, workflow_id, parts.next()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn whose_of(link: Option<&str>, uri: &str) -> Option<(String, String, String)> {
        let mut headers = HeaderMap::new();
        if let Some(link) = link {
            headers.insert("nexus-link", link.parse().unwrap());
        }
        whose(&headers, &uri.parse().unwrap())
    }

    #[test]
    fn the_run_is_in_the_link_and_the_workflow_in_the_address() {
        let uri = "/webhooks/temporal?namespace=default&workflow_id=a%3A1%20%C3%A9";
        let link = "<temporal:///namespaces/default/workflows/a:1%20%C3%A9/r-1/history?eventID=7&eventType=X>; type=\"temporal.api.common.v1.Link.WorkflowEvent\"";
        let of = |run: &str| Some(("default".to_owned(), "a:1 é".to_owned(), run.to_owned()));

        assert_eq!(whose_of(Some(link), uri), of("r-1"));
        for other in ["<http://x/>", "temporal:///namespaces/default", "<temporal:///namespaces/b/workflows/a:1/r/h>"] {
            assert_eq!(whose_of(Some(other), uri), of(""), "{other}");
        }
        assert_eq!(whose_of(None, uri), of(""));
        assert_eq!(whose_of(Some(link), "/webhooks/temporal?namespace=default"), None);
    }

    #[test]
    fn after_a_refusal_nothing_is_attached_for_a_while() {
        let attached = Attached::new("http://bridge:8084", Secret::from("t".to_owned()));
        assert!(attached.is_wanted());
        attached.clone().refused();
        assert!(!attached.is_wanted());

        let due = Instant::now().checked_sub(Duration::from_secs(1));
        *attached.not_before.lock().unwrap() = due;
        assert!(attached.is_wanted(), "and not for good");
    }

    #[test]
    fn what_is_attached_comes_back_as_it_was() {
        let attached = Attached::new("http://bridge:8084/", Secret::from("t".to_owned()));
        let callback = attached.to("de fault", "lago:invoice/1?x=&y");
        let Some(Variant::Nexus(nexus)) = callback.variant else { unreachable!("it is one by HTTP") };

        let (_, path) = nexus.url.split_once("8084").unwrap();
        let expected = ("de fault".to_owned(), "lago:invoice/1?x=&y".to_owned(), String::new());
        assert_eq!(whose_of(None, path), Some(expected));
        assert_eq!(nexus.header["authorization"], "Bearer t");
    }
}
