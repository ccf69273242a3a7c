//! The facts that are seen by doing: a metric, a plan over 0, a customer and a subscription of our own, an event, and the
//! webhook that tells of the customer. All of it has one name, and is removed again whatever came of it.

use std::io::Write as _;
use std::time::{Duration, Instant};

use kit::clock::{Clock as _, SystemClock, Timestamp};
use kit::error::chain;
use kit_delivery::api::EventPage;
use kit_lago::api::LagoApi;
use kit_lago::exchange::Place;
use reqwest::Method;
use serde_json::{Value, json};

use super::fact::{CLEANED, EVENT_AGAIN, EVENT_COUNTED, EVENT_TAKEN, Fact, Holds, Seen, WEBHOOK, WRITES};
use super::reads::{exactly, seen};
use crate::admin::Admin;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is made, by its name.
struct Made {
    name: String,
    /// What is to be removed, the last first.
    paths: Vec<String>,
}

/// Sees every fact of this half; `processor` is where webhooks are looked for, and `within` is how long Lago may take to get
/// to what is in its queue.
pub(super) async fn all(
    api: &LagoApi,
    processor: Result<Admin, anyhow::Error>,
    now: Timestamp,
    within: Duration,
) -> Vec<Seen> {
    // Another name each time: only a new customer is told of from v1.17.0 on, and nothing is ever mistaken for an earlier try.
    let name = format!("outrigger-verify-upgrade-{:x}", now.as_millis());
    let _ = writeln!(std::io::stderr(), "made in Lago under the name {name}, and removed at the end");
    let mut made = Made { name, paths: Vec::new() };
    let written = make(api, &mut made).await;
    let is_made = written.holds == Holds::Yes;
    let mut all = vec![written];
    if is_made {
        let webhook = webhook(processor, &made.name, within);
        let (usage, webhook) = tokio::join!(usage(api, &made.name, within), webhook);
        all.extend(usage);
        all.push(webhook);
    } else {
        let facts = [&EVENT_TAKEN, &EVENT_AGAIN, &EVENT_COUNTED, &WEBHOOK];
        all.extend(facts.map(|fact| Seen::of(fact, Holds::Unknown, "not tried: there is nothing to try it with")));
    }
    all.push(clean(api, &made).await);
    all
}

async fn make(api: &LagoApi, made: &mut Made) -> Seen {
    let name = made.name.clone();
    // Noted before it is sent: what Lago was too slow to answer may be there all the same.
    made.paths.push(format!("billable_metrics/{name}"));
    let metric = json!({ "billable_metric": { "name": name, "code": name, "aggregation_type": "count_agg" } });
    let answer = match post(api, "billable_metrics", &metric).await {
        Ok(answer) => answer,
        Err(text) => return Seen::of(&WRITES, Holds::No, text),
    };
    let Some(metric_id) = answer["billable_metric"]["lago_id"].as_str() else {
        return Seen::of(&WRITES, Holds::No, "a metric was made, and its lago_id is not in the answer");
    };
    let charge =
        json!({ "billable_metric_id": metric_id, "charge_model": "standard", "properties": { "amount": "0" } });
    let plan = json!({ "plan": {
        "name": name, "code": name, "interval": "monthly", "amount_cents": 0, "amount_currency": "USD",
        "pay_in_advance": false, "charges": [charge],
    }});
    let customer = json!({ "customer": { "external_id": name, "name": name } });
    let subscription =
        json!({ "subscription": { "external_id": name, "external_customer_id": name, "plan_code": name } });
    for (path, body, root) in [
        ("plans", &plan, "plan"),
        ("customers", &customer, "customer"),
        ("subscriptions", &subscription, "subscription"),
    ] {
        made.paths.push(format!("{path}/{name}"));
        match post(api, path, body).await {
            Ok(answer) => {
                if !answer[root].is_object() {
                    return Seen::of(&WRITES, Holds::No, format!("{path}: 200, and {root} is not in the answer"));
                }
            }
            Err(text) => return Seen::of(&WRITES, Holds::No, text),
        }
    }
    Seen::of(&WRITES, Holds::Yes, "a metric, a plan, a customer and a subscription: 200")
}

async fn post(api: &LagoApi, path: &str, body: &Value) -> Result<Value, String> {
    match api.exchange(Method::POST, Place::Api(path), Some(body)).await {
        Ok(answer) if answer.status == 200 => Ok(answer.body),
        Ok(answer) => {
            let details: String = answer.body.to_string().chars().take(200).collect();
            Err(format!("{path}: {} in place of 200, {details}", answer.status))
        }
        Err(error) => Err(format!("{path}: {}", chain(&error))),
    }
}

/// An event, the same again, and how often it is counted.
async fn usage(api: &LagoApi, name: &str, within: Duration) -> [Seen; 3] {
    // Lago counts no event of before its subscription began, and that was within this second.
    let timestamp = SystemClock.now().as_millis() / 1000 + 1;
    let event =
        json!({ "transaction_id": name, "external_subscription_id": name, "code": name, "timestamp": timestamp });
    let body = json!({ "events": [event] });
    let asked = || (Method::POST, Place::Api("events/batch"), Some(&body));
    let taken = seen(api, &EVENT_TAKEN, asked(), |answer| {
        exactly(answer, 200)?;
        if answer.body["events"][0]["transaction_id"] == json!(name) {
            Ok("200, with its transaction_id".to_owned())
        } else {
            Err("200, and events[0].transaction_id is not that of the event".to_owned())
        }
    })
    .await;
    if taken.holds != Holds::Yes {
        let none = |fact: &Fact| Seen::of(fact, Holds::Unknown, "not tried: the event was not taken");
        return [taken, none(&EVENT_AGAIN), none(&EVENT_COUNTED)];
    }
    let again = seen(api, &EVENT_AGAIN, asked(), |answer| match answer.status {
        // ClickHouse takes it again, and counts it once.
        200 => Ok("200: the event store is ClickHouse".to_owned()),
        422 => {
            let codes = answer.body["error_details"]["0"]["transaction_id"].as_array();
            let is_known = codes.is_some_and(|codes| codes.iter().any(|code| code == "value_already_exist"));
            if is_known {
                Ok("422, value_already_exist under its index".to_owned())
            } else {
                Err("422, and error_details.0.transaction_id has no value_already_exist".to_owned())
            }
        }
        status => Err(format!("{status} in place of 422")),
    })
    .await;
    [taken, again, counted(api, name, within).await]
}

async fn counted(api: &LagoApi, name: &str, within: Duration) -> Seen {
    let begun = Instant::now();
    loop {
        let text = match api.current_usage(name, name).await {
            Ok(usage) => {
                let own = usage.charges_usage.iter().find(|charge| charge.billable_metric.code == name);
                match own.map(|charge| charge.events_count) {
                    Some(1) => return Seen::of(&EVENT_COUNTED, Holds::Yes, "once"),
                    Some(0) => "counted 0 times".to_owned(),
                    Some(times) => return Seen::of(&EVENT_COUNTED, Holds::No, format!("counted {times} times")),
                    None => "the charge is not in current_usage".to_owned(),
                }
            }
            Err(error) => chain(&error),
        };
        if begun.elapsed() >= within {
            let text = format!("after {} s: {text}; is Lago's worker there?", within.as_secs());
            return Seen::of(&EVENT_COUNTED, Holds::No, text);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Looks for the webhook at the processor, which takes only what is signed as it should be.
async fn webhook(processor: Result<Admin, anyhow::Error>, name: &str, within: Duration) -> Seen {
    let look = async |admin: &Admin| {
        let query = [("subject", format!("customer/{name}")), ("limit", "1".to_owned())];
        admin.get::<EventPage>("/events", &query).await
    };
    let begun = Instant::now();
    let processor = match processor {
        Ok(processor) => processor,
        Err(error) => return not_looked_for(&error),
    };
    loop {
        match look(&processor).await {
            Ok(page) if !page.events.is_empty() => {
                let text = format!("after {:.1} s, with a good signature", begun.elapsed().as_secs_f64());
                return Seen::of(&WEBHOOK, Holds::Yes, text);
            }
            Ok(_) if begun.elapsed() >= within => {
                let text = format!("nothing within {} s: is Lago's worker there? outrigger doctor", within.as_secs());
                return Seen::of(&WEBHOOK, Holds::No, text);
            }
            Ok(_) => tokio::time::sleep(LOOK_EVERY).await,
            Err(error) => return not_looked_for(&error),
        }
    }
}

/// It was asked for, and nobody knows: that is not good, whoever's fault it is.
fn not_looked_for(error: &anyhow::Error) -> Seen {
    let text = format!("not looked for: {error:#}; give --admin and --token-file of the webhook processor");
    Seen::of(&WEBHOOK, Holds::No, text)
}

/// Removes what was made. What is left is said by its path, so that somebody can.
async fn clean(api: &LagoApi, made: &Made) -> Seen {
    let (mut left, mut removed) = (Vec::new(), 0);
    for path in made.paths.iter().rev() {
        match api.exchange(Method::DELETE, Place::Api(path), None).await {
            Ok(answer) if answer.status == 200 => removed += 1,
            // It was refused, or not made at all.
            Ok(answer) if answer.status == 404 => {}
            Ok(answer) => left.push(format!("{path} ({})", answer.status)),
            Err(error) => left.push(format!("{path} ({})", chain(&error))),
        }
    }
    if left.is_empty() {
        return Seen::of(&CLEANED, Holds::Yes, format!("{removed} removed"));
    }
    Seen::of(&CLEANED, Holds::No, format!("left behind, remove it by hand: {}", left.join(", ")))
}
