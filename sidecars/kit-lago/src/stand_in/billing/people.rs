//! Customers and subscriptions over HTTP, as far as somebody makes one of each, uses it and takes it away again; and the
//! one webhook that is sent for that, `customer.created`, to every endpoint of the organisation.
//!
//! Source: getlago/lago-api `app/controllers/api/v1/customers_controller.rb`, `subscriptions_controller.rb`,
//! `app/services/customers/create_service.rb` at v1.16.0 and at the head of 2026-08-21.

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::Answer;
use super::catalogue::{Subscription, SubscriptionStatus};
use super::period;
use super::profile::Profile;
use super::state::{Books, LagoState};
use super::timestamp::now_micros;
use crate::management::Kind;
use crate::sample::{Shape, sample};
use crate::sender::{Sender, Signing};

/// What a request wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    MakeCustomer,
    RemoveCustomer(String),
    MakeSubscription,
    EndSubscription(String),
}

impl Wish {
    /// The wish of a route below `/api/v1/`, its segments decoded.
    pub(super) fn of(method: &Method, segments: &[&str]) -> Option<Self> {
        match (method.as_str(), segments) {
            ("POST", ["customers"]) => Some(Self::MakeCustomer),
            ("DELETE", ["customers", id]) => Some(Self::RemoveCustomer((*id).to_owned())),
            ("POST", ["subscriptions"]) => Some(Self::MakeSubscription),
            ("DELETE", ["subscriptions", id]) => Some(Self::EndSubscription((*id).to_owned())),
            _ => None,
        }
    }
}

/// Does it, and tells of a customer that webhooks are sent about.
pub(super) fn answer(books: &mut Books, profile: Profile, wish: &Wish, body: &[u8]) -> (Answer, Option<String>) {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |root: &str, name: &str| body[root][name].as_str().map(str::to_owned);
    let answer = match wish {
        Wish::MakeCustomer => {
            let Some(id) = text("customer", "external_id") else { return (Answer::missing_root_key("customer"), None) };
            let is_new = books.catalogue.customer(&id).is_none();
            books.catalogue.put_customer(&id);
            let shown = books.catalogue.customer(&id).map(super::catalogue::Customer::to_json);
            // v1.16.0 tells of every upsert; v1.17.0 and later of new ones only.
            let told = (is_new || profile == Profile::V1_16).then_some(id);
            return (Answer::json(200, &json!({ "customer": shown })), told);
        }
        Wish::RemoveCustomer(id) => match books.catalogue.customer(id).map(super::catalogue::Customer::to_json) {
            Some(shown) => {
                books.catalogue.remove_customer(id);
                Answer::json(200, &json!({ "customer": shown }))
            }
            None => Answer::not_found("customer_not_found"),
        },
        Wish::MakeSubscription => {
            let named = |name: &str| text("subscription", name).unwrap_or_default();
            let (id, customer, plan) = (named("external_id"), named("external_customer_id"), named("plan_code"));
            if !books.managed.codes(Kind::Plan).contains(&plan) {
                return (Answer::not_found("plan_not_found"), None);
            }
            books.catalogue.put_subscription(Subscription::active(&id, &customer, &plan, Timestamp::now()));
            shown(books, profile, &id, SubscriptionStatus::Active)
        }
        Wish::EndSubscription(id) => {
            if books.catalogue.end_subscription(id, Timestamp::now()) {
                shown(books, profile, id, SubscriptionStatus::Terminated)
            } else {
                Answer::not_found("subscription_not_found")
            }
        }
    };
    (answer, None)
}

fn shown(books: &Books, profile: Profile, id: &str, status: SubscriptionStatus) -> Answer {
    let mut known = books.catalogue.subscriptions.iter();
    let found = known.find(|known| known.external_id == id && known.status == status);
    let with = found.and_then(|own| Some((own, books.catalogue.customer(&own.external_customer_id)?)));
    match with {
        Some((own, customer)) => {
            let json = own.to_json(profile, customer, period::current(own, now_micros()));
            Answer::json(200, &json!({ "subscription": json }))
        }
        None => Answer::not_found("subscription_not_found"),
    }
}

/// Sends `customer.created` to every endpoint, once each, where there is something to sign it with.
pub(super) fn tell(state: &LagoState, customer: String) {
    let Some(signing) = state.signing() else { return };
    for url in state.change(|books| books.managed.endpoint_urls()) {
        let (signing, customer) = (signing.clone(), customer.clone());
        tokio::spawn(async move {
            if let Err(error) = send(&url, &signing, customer).await {
                tracing::debug!(%error, "the stand-in for Lago cannot send a webhook");
            }
        });
    }
}

async fn send(url: &str, signing: &Signing, customer: String) -> Result<(), String> {
    let body = sample("customer.created", &Shape { customer, ..Shape::default() });
    let delivery = signing.delivery("customer.created", body).map_err(|error| error.to_string())?;
    let sender = Sender::new(url).map_err(|error| error.to_string())?;
    sender.send_once(&delivery).await.map(drop).map_err(|error| error.to_string())
}
