//! The facts that are seen by asking: nothing is stored, and what is sent is refused for a known reason.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit::error::chain;
use kit_lago::api::{ApiError, BillableMetric, LagoApi, PlanCharge, Subscription};
use kit_lago::exchange::{Exchange, Place};
use kit_lago::public_key::decode_public_key_answer;
use kit_lago::shown_url;
use kit_lago::signature::RsaKey;
use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::fact::{
    ADD_ONS, BATCH_REFUSED, COUPONS, ENDPOINTS, EVENT_REFUSED, FEATURES, Fact, HEALTH, Holds, INVOICE, KEY_REFUSED,
    KEY_TAKEN, METRICS, PAST_USAGE, PLANS, PUBLIC_KEY, SUBSCRIPTIONS, Seen, TAXES, UNKNOWN_PATH, USAGE, USAGE_REFUSED,
};

/// Nobody's name: what is refused or not found is asked for with it.
const NOBODY: &str = "outrigger-verify-upgrade-nobody";
/// As many as the usage tracker sends at once: `LAGO_EVENTS_BATCH_MAX_LENGTH` of Lago.
const BATCH: usize = 100;
/// A hundred thousand of anything are more than a catalogue has.
const MOST_PAGES: u64 = 1_000;

/// Sees every fact of this half.
pub(super) async fn all(api: &LagoApi) -> Vec<Seen> {
    let mut seen = vec![health(api).await, unknown_path(api).await, key_refused(api).await, key_taken(api).await];
    seen.push(public_key(api).await);
    seen.push(event_refused(api).await);
    seen.push(batch_refused(api).await);
    seen.push(metrics(api).await);
    seen.push(plans(api).await);
    for (fact, path) in [(&TAXES, "taxes"), (&COUPONS, "coupons"), (&ADD_ONS, "add_ons")] {
        seen.push(list(api, fact, path, &["code"], |_| Ok(())).await);
    }
    seen.push(features(api).await);
    seen.push(
        list(api, &ENDPOINTS, "webhook_endpoints", &["lago_id", "webhook_url", "signature_algo"], |_| Ok(())).await,
    );
    seen.extend(subscriptions(api).await);
    seen.push(
        not_found(api, &USAGE_REFUSED, &format!("customers/{NOBODY}/current_usage?external_subscription_id={NOBODY}"))
            .await,
    );
    seen.push(not_found(api, &INVOICE, "invoices/00000000-0000-4000-8000-000000000000").await);
    seen
}

/// Asks, and judges the answer; none at all is a fact that does not hold.
pub(super) async fn seen(
    api: &LagoApi,
    fact: &Fact,
    (method, place, body): (Method, Place<'_>, Option<&Value>),
    judge: impl FnOnce(&Exchange) -> Result<String, String>,
) -> Seen {
    match api.exchange(method, place, body).await {
        Ok(answer) => match judge(&answer) {
            Ok(text) => Seen::of(fact, Holds::Yes, text).with_fields(&answer.body),
            Err(text) => Seen::of(fact, Holds::No, text).with_fields(&answer.body),
        },
        Err(error) => Seen::of(fact, Holds::No, chain(&error)),
    }
}

async fn health(api: &LagoApi) -> Seen {
    seen(api, &HEALTH, (Method::GET, Place::Plain("health"), None), |answer| {
        let version = answer.body["version"].as_str();
        match (answer.status, version, answer.body["message"].as_str()) {
            (200, Some(version), Some("Success")) => Ok(format!("200, {version}")),
            (status, version, message) => Err(format!(
                "{status}, version {}, message {}",
                version.unwrap_or("missing"),
                message.unwrap_or("missing")
            )),
        }
    })
    .await
}

async fn unknown_path(api: &LagoApi) -> Seen {
    // The path that many health checks ask for, and that does not exist in any version.
    seen(api, &UNKNOWN_PATH, (Method::GET, Place::Api("health"), None), |answer| {
        match (answer.status, answer.body["code"].as_str()) {
            (404, Some("resource_not_found")) => Ok("404, resource_not_found".to_owned()),
            (status, code) => Err(format!("{status}, code {}", code.unwrap_or("missing"))),
        }
    })
    .await
}

async fn key_refused(api: &LagoApi) -> Seen {
    let asked = (Method::GET, Place::ApiWithWrongKey("billable_metrics?per_page=1"), None);
    seen(api, &KEY_REFUSED, asked, |answer| exactly(answer, 401)).await
}

async fn key_taken(api: &LagoApi) -> Seen {
    let asked = (Method::GET, Place::Api("billable_metrics?per_page=1"), None);
    seen(api, &KEY_TAKEN, asked, |answer| exactly(answer, 200)).await
}

pub(super) fn exactly(answer: &Exchange, status: u16) -> Result<String, String> {
    if answer.status == status {
        Ok(status.to_string())
    } else {
        Err(format!("{} in place of {status}", answer.status))
    }
}

async fn public_key(api: &LagoApi) -> Seen {
    let mut fingerprint = None;
    let found = seen(api, &PUBLIC_KEY, (Method::GET, Place::Api("webhooks/json_public_key"), None), |answer| {
        exactly(answer, 200)?;
        let text = answer.body["webhook"]["public_key"].as_str().ok_or("webhook.public_key is not there")?;
        let pem = decode_public_key_answer(text).map_err(|error| format!("{error}, {}", form_of(text)))?;
        let key = RsaKey::from_pem(&pem).map_err(|error| error.to_string())?;
        fingerprint = Some(key.fingerprint());
        Ok(format!("RSA, {} bits, {}", key.bits(), key.fingerprint()))
    })
    .await;
    found.keeping(fingerprint.map(|fingerprint| format!("the key {fingerprint}")))
}

/// What else it might be, for whoever has to find out.
fn form_of(text: &str) -> &'static str {
    let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    match STANDARD.decode(compact) {
        _ if text.contains("-----BEGIN") => "but the PEM itself",
        Ok(bytes) if bytes.first() == Some(&0x30) => "but the Base64 of DER",
        _ => "and nothing known",
    }
}

/// Wanting what every event must have.
fn wrong_event() -> Value {
    json!({ "code": NOBODY, "external_subscription_id": NOBODY })
}

async fn event_refused(api: &LagoApi) -> Seen {
    let body = json!({ "event": wrong_event() });
    seen(api, &EVENT_REFUSED, (Method::POST, Place::Api("events"), Some(&body)), |answer| {
        exactly(answer, 422)?;
        wants_an_id(&answer.body["error_details"]).map(|()| "422, transaction_id: value_is_mandatory".to_owned())
    })
    .await
}

async fn batch_refused(api: &LagoApi) -> Seen {
    let body = json!({ "events": vec![wrong_event(); BATCH] });
    seen(api, &BATCH_REFUSED, (Method::POST, Place::Api("events/batch"), Some(&body)), |answer| {
        exactly(answer, 422)?;
        let details = &answer.body["error_details"];
        for index in [0, BATCH - 1] {
            let own = details
                .get(index.to_string())
                .ok_or_else(|| format!("error_details has no index {index}: {}", shown(details)))?;
            wants_an_id(own)?;
        }
        Ok(format!("422, {BATCH} indexes, transaction_id: value_is_mandatory"))
    })
    .await
    .without_indexes()
}

impl Seen {
    /// A hundred indexes are one fact.
    fn without_indexes(mut self) -> Self {
        self.fields.retain(|field| !field.contains("error_details."));
        self
    }
}

fn wants_an_id(details: &Value) -> Result<(), String> {
    let codes = details["transaction_id"].as_array();
    if codes.is_some_and(|codes| codes.iter().any(|code| code == "value_is_mandatory")) {
        Ok(())
    } else {
        Err(format!("transaction_id: value_is_mandatory is not in {}", shown(details)))
    }
}

/// The beginning of what was answered; Lago's own words of what we sent.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

/// A list whose entries have these fields, and its codes or addresses: of all its pages, for others may be on the first one
/// next time.
async fn list(
    api: &LagoApi,
    fact: &Fact,
    path: &str,
    fields: &[&str],
    understood: impl FnOnce(&Value) -> Result<(), String>,
) -> Seen {
    let mut keeps = Vec::new();
    let mut next = Value::Null;
    let found = seen(api, fact, (Method::GET, Place::Api(&format!("{path}?per_page=100")), None), |answer| {
        keeps = entries(answer, path, fields)?;
        understood(&answer.body[path])?;
        next = answer.body["meta"]["next_page"].clone();
        Ok(format!("200, {}{} of them", if next.is_null() { "" } else { "more than " }, keeps.len()))
    })
    .await;
    let mut read = 1;
    while found.holds == Holds::Yes && !next.is_null() {
        read += 1;
        if read > MOST_PAGES || next.as_u64() != Some(read) {
            return Seen::of(fact, Holds::No, format!("page {read} of {path} is said to be number {next}"));
        }
        let place = format!("{path}?per_page=100&page={read}");
        let further = api.exchange(Method::GET, Place::Api(&place), None).await;
        match further.map_err(|error| chain(&error)).and_then(|answer| Ok((entries(&answer, path, fields)?, answer))) {
            Ok((more, answer)) => {
                keeps.extend(more);
                next = answer.body["meta"]["next_page"].clone();
            }
            Err(text) => return Seen::of(fact, Holds::No, format!("page {read} of {path}: {text}")),
        }
    }
    found.keeping(keeps)
}

/// What is to be there next time, of one page.
fn entries(answer: &Exchange, path: &str, fields: &[&str]) -> Result<Vec<String>, String> {
    exactly(answer, 200)?;
    let entries = answer.body[path].as_array().ok_or_else(|| format!("{path} is not in the answer"))?;
    if !answer.body["meta"].as_object().is_some_and(|meta| meta.contains_key("next_page")) {
        return Err("meta.next_page is not in the answer".to_owned());
    }
    let mut keeps = Vec::new();
    for entry in entries {
        if let Some(missing) = fields.iter().find(|field| !entry[**field].is_string()) {
            return Err(format!("an entry of {path} has no {missing}"));
        }
        keeps.push(match entry["webhook_url"].as_str() {
            Some(url) => {
                let algorithm = entry["signature_algo"].as_str().unwrap_or_default();
                format!("webhook endpoint {} ({algorithm})", shown_url(url))
            }
            None => format!("{path} {}", entry["code"].as_str().unwrap_or_default()),
        });
    }
    Ok(keeps)
}

/// What daemons read them by must understand them: their own types do.
fn understood<T: DeserializeOwned>(entries: &Value) -> Result<(), String> {
    let not = |error: serde_json::Error| format!("the usage tracker does not understand it: {error}");
    Vec::<T>::deserialize(entries).map(drop).map_err(not)
}

async fn metrics(api: &LagoApi) -> Seen {
    list(api, &METRICS, "billable_metrics", &["lago_id", "code", "aggregation_type"], understood::<BillableMetric>)
        .await
}

async fn plans(api: &LagoApi) -> Seen {
    list(api, &PLANS, "plans", &["code"], understood::<Plan>).await
}

/// A plan, as far as the usage tracker reads it.
#[derive(Deserialize)]
struct Plan {
    #[serde(rename = "charges")]
    _charges: Vec<PlanCharge>,
}

async fn features(api: &LagoApi) -> Seen {
    let seen = list(api, &FEATURES, "features", &["code"], |_| Ok(())).await;
    match api.exchange(Method::GET, Place::Api("features?per_page=1"), None).await {
        // Before v1.32.0, and with a licence of some versions.
        Ok(Exchange { status: status @ (403 | 404), .. }) => {
            Seen::of(&FEATURES, Holds::Unknown, format!("{status}: not in this Lago"))
        }
        _ => seen,
    }
}

async fn subscriptions(api: &LagoApi) -> [Seen; 3] {
    let path = "subscriptions?status[]=active&status[]=terminated&per_page=100";
    let mut first = None;
    let seen = seen(api, &SUBSCRIPTIONS, (Method::GET, Place::Api(path), None), |answer| {
        exactly(answer, 200)?;
        let entries = answer.body["subscriptions"].as_array().ok_or("subscriptions is not in the answer")?;
        for entry in entries {
            for field in ["lago_id", "external_id", "external_customer_id", "plan_code", "status"] {
                if !entry[field].is_string() {
                    return Err(format!("a subscription has no {field}"));
                }
            }
        }
        let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let active = entries.iter().find(|entry| entry["status"] == "active");
        understood::<Subscription>(&answer.body["subscriptions"])?;
        first = active.map(|entry| (text(entry, "external_customer_id"), text(entry, "external_id")));
        Ok(format!("200, {} on the first page", entries.len()))
    })
    .await;
    let Some((customer, subscription)) = first else {
        let none = "no active subscription to see it by";
        return [seen, Seen::of(&USAGE, Holds::Unknown, none), Seen::of(&PAST_USAGE, Holds::Unknown, none)];
    };
    let of = |fact, text: Result<String, ApiError>| match text {
        Ok(text) => Seen::of(fact, Holds::Yes, text),
        Err(error) => Seen::of(fact, Holds::No, chain(&error)),
    };
    let usage = api.current_usage(&customer, &subscription).await;
    let usage =
        of(&USAGE, usage.map(|usage| format!("{} charges since {}", usage.charges_usage.len(), usage.from_datetime)));
    let past = match api.past_usage(&customer, &subscription).await {
        // v1.16.0 has it, some before have not; ids with a dot are not found there.
        Err(ApiError::NotFound) => Seen::of(&PAST_USAGE, Holds::Unknown, "404: not in this Lago"),
        past => of(&PAST_USAGE, past.map(|periods| format!("{} periods", periods.len()))),
    };
    [seen, usage, past]
}

async fn not_found(api: &LagoApi, fact: &Fact, path: &str) -> Seen {
    seen(api, fact, (Method::GET, Place::Api(path), None), |answer| exactly(answer, 404)).await
}
