//! The writing half of the API: metrics, plans with charges, taxes, coupons, add-ons, features, entitlements and webhook
//! endpoints, with the rules by which Lago takes, ignores and refuses what it is told.
//!
//! Without a licence, as on a free instance: what needs one is ignored.
//!
//! Source: getlago/lago-api `app/controllers/api/v1/`, `app/services/` and `app/serializers/v1/` at v1.16.0 and at the
//! head of 2026-08-21.

mod coupons;
mod endpoints;
mod features;
mod metrics;
mod params;
mod plans;
mod taxes;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::answer::{Answer, Page};
use super::catalogue::{Catalogue, plan_to_json};
use super::profile::Profile;
use crate::management::{Kind, Object};
use params::Params;

pub(super) use features::Entitlements;

/// What a request wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    List(Kind),
    Show(Kind, String),
    Create(Kind),
    Update(Kind, String),
    Delete(Kind, String),
    Entitlements { plan: String, what: Entitlements },
}

impl Call {
    /// The call of a route below `/api/v1/`, its segments decoded; `None` where this Lago has no such route.
    pub(super) fn of(method: &Method, segments: &[&str], profile: Profile) -> Option<Self> {
        if let ["plans", plan, "entitlements", rest @ ..] = segments {
            let what = Entitlements::of(method, rest).filter(|_| profile.has_features())?;
            return Some(Self::Entitlements { plan: (*plan).to_owned(), what });
        }
        let (first, rest) = segments.split_first()?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.path() == *first)?;
        if kind == Kind::Feature && !profile.has_features() {
            return None;
        }
        let is_update = *method == Method::PUT || *method == Method::PATCH;
        match rest {
            [] if *method == Method::GET => Some(Self::List(kind)),
            [] if *method == Method::POST => Some(Self::Create(kind)),
            [id] if *method == Method::GET => Some(Self::Show(kind, (*id).to_owned())),
            [id] if is_update => Some(Self::Update(kind, (*id).to_owned())),
            [id] if *method == Method::DELETE => Some(Self::Delete(kind, (*id).to_owned())),
            _ => None,
        }
    }

    /// What it is about.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::List(kind)
            | Self::Show(kind, _)
            | Self::Create(kind)
            | Self::Update(kind, _)
            | Self::Delete(kind, _) => *kind,
            Self::Entitlements { .. } => Kind::Plan,
        }
    }

    /// Whether it changes anything.
    pub(super) fn is_writing(&self) -> bool {
        match self {
            Self::List(_) | Self::Show(..) => false,
            Self::Create(_) | Self::Update(..) | Self::Delete(..) => true,
            Self::Entitlements { what, .. } => what.is_writing(),
        }
    }
}

/// All but the metrics, each list in order of creation.
#[derive(Clone, Debug, Default)]
pub(super) struct Managed {
    taxes: Vec<Object>,
    features: Vec<Object>,
    plans: Vec<Object>,
    add_ons: Vec<Object>,
    coupons: Vec<Object>,
    endpoints: Vec<Object>,
    /// Codes of coupons that customers have.
    applied_coupons: Vec<String>,
    /// Lists of v1.16.0 without an order come in another one each time.
    listed: usize,
}

impl Managed {
    pub(super) fn note_coupon_applied(&mut self, code: &str) {
        self.applied_coupons.push(code.to_owned());
    }

    /// The coupons that customers have, in the order in which they got them.
    pub(super) fn applied_coupons(&self) -> impl Iterator<Item = Value> {
        self.applied_coupons.iter().enumerate().map(
            |(at, code)| json!({ "lago_id": Uuid::from_u128(at as u128), "coupon_code": code, "status": "active" }),
        )
    }

    /// The codes of a kind.
    pub(super) fn codes(&mut self, kind: Kind) -> Vec<String> {
        let codes = self.list(kind).iter().filter_map(|object| text(object, "code"));
        codes.map(str::to_owned).collect()
    }

    /// Where webhooks are sent.
    pub(super) fn endpoint_urls(&self) -> Vec<String> {
        self.endpoints.iter().filter_map(|endpoint| text(endpoint, "webhook_url")).map(str::to_owned).collect()
    }

    fn list(&mut self, kind: Kind) -> &mut Vec<Object> {
        match kind {
            Kind::Tax => &mut self.taxes,
            Kind::Feature => &mut self.features,
            Kind::Plan => &mut self.plans,
            Kind::AddOn => &mut self.add_ons,
            Kind::Coupon => &mut self.coupons,
            // Metrics are in the catalogue, where usage is counted by them.
            Kind::WebhookEndpoint | Kind::BillableMetric => &mut self.endpoints,
        }
    }
}

/// What a call works on.
pub(super) struct Desk<'a> {
    pub(super) profile: Profile,
    pub(super) catalogue: &'a mut Catalogue,
    pub(super) managed: &'a mut Managed,
}

/// Answers a call; `body` is empty where the request had no JSON.
pub(super) fn answer(mut desk: Desk<'_>, call: &Call, body: &[u8], page: Page) -> Answer {
    let outcome = match call {
        Call::List(kind) => return desk.listed(*kind, page),
        Call::Show(kind, id) => desk.found(*kind, id),
        Call::Create(kind) => Params::of(body, kind.root()).and_then(|params| desk.create(*kind, &params)),
        Call::Update(kind, id) => Params::of(body, kind.root()).and_then(|params| desk.update(*kind, id, &params)),
        Call::Delete(kind, id) => desk.delete(*kind, id),
        Call::Entitlements { plan, what } => return desk.entitlements(plan, what, body),
    };
    match (outcome, call) {
        (Ok(object), Call::Show(kind, _) | Call::Create(kind) | Call::Update(kind, _) | Call::Delete(kind, _)) => {
            Answer::json(200, &json!({ kind.root(): object }))
        }
        (Err(answer), _) => *answer,
        (Ok(_), _) => Answer::bare(500),
    }
}

/// What there is to show, or why not.
type Outcome = Result<Value, Box<Answer>>;

fn refused<T>(answer: Answer) -> Result<T, Box<Answer>> {
    Err(Box::new(answer))
}

fn not_found<T>(kind: Kind) -> Result<T, Box<Answer>> {
    refused(Answer::not_found(&format!("{}_not_found", kind.root())))
}

impl Desk<'_> {
    fn create(&mut self, kind: Kind, params: &Params) -> Outcome {
        match kind {
            Kind::Tax => self.create_tax(params),
            Kind::BillableMetric => self.create_metric(params),
            Kind::Feature => self.create_feature(params),
            Kind::Plan => self.create_plan(params),
            Kind::AddOn => self.create_add_on(params),
            Kind::Coupon => self.create_coupon(params),
            Kind::WebhookEndpoint => self.create_endpoint(params),
        }
    }

    fn update(&mut self, kind: Kind, id: &str, params: &Params) -> Outcome {
        match kind {
            Kind::BillableMetric => self.update_metric(id, params),
            _ => {
                let Some(at) = self.position(kind, id) else { return not_found(kind) };
                match kind {
                    Kind::Tax => self.update_tax(at, params),
                    Kind::Feature => self.update_feature(at, params),
                    Kind::Plan => self.update_plan(at, params),
                    Kind::AddOn => self.update_add_on(at, params),
                    Kind::Coupon => self.update_coupon(at, params),
                    Kind::WebhookEndpoint | Kind::BillableMetric => self.update_endpoint(at, params),
                }
            }
        }
    }

    fn delete(&mut self, kind: Kind, id: &str) -> Outcome {
        let shown = self.found(kind, id)?;
        match kind {
            Kind::BillableMetric => self.delete_metric(id),
            _ => {
                if let Some(at) = self.position(kind, id) {
                    self.managed.list(kind).remove(at);
                }
            }
        }
        Ok(shown)
    }

    fn found(&mut self, kind: Kind, id: &str) -> Outcome {
        if kind == Kind::BillableMetric {
            let metric = self.catalogue.metrics.iter().find(|metric| metric.code == id);
            return metric.map_or_else(|| not_found(kind), |metric| Ok(self.show_metric(metric)));
        }
        match self.position(kind, id) {
            Some(at) => Ok(self.show(kind, at)),
            // A subscription that was put here by hand has a plan that nobody made.
            None if kind == Kind::Plan && self.catalogue.subscriptions.iter().any(|own| own.plan_code == id) => {
                Ok(plan_to_json(id, &self.catalogue.metrics))
            }
            None => not_found(kind),
        }
    }

    fn position(&mut self, kind: Kind, id: &str) -> Option<usize> {
        let name = if kind == Kind::WebhookEndpoint { "lago_id" } else { "code" };
        self.managed.list(kind).iter().position(|object| object.get(name).and_then(Value::as_str) == Some(id))
    }

    fn show(&mut self, kind: Kind, at: usize) -> Value {
        match kind {
            Kind::Plan => self.show_plan(at),
            Kind::AddOn => self.show_add_on(at),
            Kind::Tax => self.show_tax(at),
            _ => self.managed.list(kind).get(at).cloned().map_or(Value::Null, Value::Object),
        }
    }

    fn listed(&mut self, kind: Kind, page: Page) -> Answer {
        let mut all: Vec<Value> = if kind == Kind::BillableMetric {
            self.catalogue.metrics.iter().map(|metric| self.show_metric(metric)).collect()
        } else {
            (0..self.managed.list(kind).len()).map(|at| self.show(kind, at)).collect()
        };
        all.reverse();
        if kind == Kind::WebhookEndpoint && self.profile == Profile::V1_16 && !all.is_empty() {
            self.managed.listed += 1;
            let by = self.managed.listed % all.len();
            all.rotate_left(by);
        }
        let meta = page.meta(all.len());
        Answer::json(200, &json!({ kind.path(): all[page.range(all.len())], "meta": meta }))
    }

    /// Whether something of this kind has this code already.
    fn is_taken(&mut self, kind: Kind, code: Option<&str>) -> bool {
        code.is_some_and(|code| self.position(kind, code).is_some())
    }
}

/// What every new object has.
fn new_object() -> Object {
    let mut object = Object::new();
    object.insert("lago_id".to_owned(), json!(Uuid::new_v4()));
    object.insert("created_at".to_owned(), json!(super::catalogue::seconds(Timestamp::now())));
    object
}

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}
