//! Brings Lago to what the catalogue says, an object at a time: look, compare, send, look again. Nothing is remembered
//! between two looks, so that it may be cut off anywhere, and that another one may do the same at the same time.

use std::time::{Duration, Instant};

use kit_lago::api::{ApiError, LagoApi};
use kit_lago::management::{Kind, ManagementError, Object};
use kit_lago::shown_url;
use reqwest::Client;
use serde_json::{Value, json};

use crate::Notice;
use crate::catalogue::Catalogue;
use crate::diff::{self, Change, Comparison, Extra, MetricIds, Part};
use crate::lago::{Patience, RunError};
use crate::prune::is_going;
use crate::report::{Entry, Outcome, Report};
use crate::wanted::{self, Entitlements, Wanted};

/// Lago's own errors, and refusals because somebody was faster, that one object is tried again after.
const TRIES: u32 = 5;
/// What may be on its way to a plan without an answer gets so long before it is sent again: a charge that is sent twice is
/// there twice.
const PLAN_SETTLES_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks whether something answers at a webhook endpoint.
const BETWEEN_PROBES: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Say what is different.
    Look,
    /// Mend it.
    Apply,
}

/// How it is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Delete what Lago has and the catalogue does not, of the kinds that the catalogue has any of.
    pub prune: bool,
    /// How long Lago is waited for, each time that it is not there.
    pub wait: Duration,
    /// How long a webhook endpoint is waited for before it is registered; zero registers it unseen.
    pub wait_for_endpoint: Duration,
}

/// A Lago and what is to be in it.
pub struct Seeder<'a> {
    pub(crate) api: &'a LagoApi,
    /// Looks whether webhook endpoints answer.
    pub(crate) client: &'a Client,
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) settings: Settings,
    pub(crate) mode: Mode,
    pub(crate) patience: Patience<'a>,
    pub(crate) notice: &'a (dyn Fn(Notice<'_>) + 'a),
    metric_ids: MetricIds,
    /// Why this Lago has no features, if so.
    no_features: Option<&'static str>,
}

/// What was sent in one run, so that nothing is sent for ever.
#[derive(Default)]
struct Sent {
    changes: Vec<Change>,
    extras: Vec<Extra>,
}

impl Sent {
    fn has(&self, change: &Change) -> bool {
        self.changes.iter().any(|sent| sent.field == change.field)
    }
}

/// What Lago has of an object.
struct Actual {
    object: Object,
    granted: Option<Entitlements>,
}

impl<'a> Seeder<'a> {
    /// `notice` is told what happens as it happens.
    pub fn new(
        (api, client): (&'a LagoApi, &'a Client),
        catalogue: &'a Catalogue,
        (settings, mode): (Settings, Mode),
        notice: &'a (dyn Fn(Notice<'_>) + 'a),
    ) -> Self {
        let patience = Patience::new(settings.wait, notice);
        let (metric_ids, no_features) = (MetricIds::new(), None);
        Self { api, client, catalogue, settings, mode, patience, notice, metric_ids, no_features }
    }

    /// Goes through the whole catalogue, and then through what Lago has besides.
    ///
    /// # Errors
    /// [`RunError`]: Lago is away for too long, or lets nobody in. What was done until then stays.
    pub async fn run(mut self) -> Result<Report, RunError> {
        let lago = self.patience.wait_for_lago(self.api).await?;
        (self.notice)(Notice::Up { version: &lago });
        self.look_for_features().await?;
        let mut entries = Vec::new();
        for wanted in wanted::wanted(self.catalogue) {
            let entry = self.settle(&wanted).await?;
            (self.notice)(Notice::Entry(&entry));
            entries.push(entry);
        }
        for entry in self.extras().await? {
            (self.notice)(Notice::Entry(&entry));
            entries.push(entry);
        }
        Ok(Report { lago, entries })
    }

    /// Asked and not taken from the version: tags of Lago do not come in the order of what they hold.
    async fn look_for_features(&mut self) -> Result<(), RunError> {
        let grants = self.catalogue.plans.iter().any(|plan| plan.entitlements.is_some());
        if self.catalogue.features.is_empty() && !grants {
            return Ok(());
        }
        self.no_features = match self.patience.ask(async || self.api.objects(Kind::Feature).await).await? {
            Ok(_) => None,
            Err(ApiError::NotFound) => Some("this Lago has no features (they came with v1.32.0)"),
            Err(ApiError::Denied(_)) => {
                Some("this Lago wants a licence for features (until late in 2025), or its key may not read them")
            }
            Err(error) => return Err(other(&error)),
        };
        Ok(())
    }

    async fn settle(&mut self, wanted: &Wanted) -> Result<Entry, RunError> {
        let (kind, id) = (wanted.kind, wanted.identity.as_str());
        if kind == Kind::Feature
            && let Some(reason) = self.no_features
        {
            return Ok(Entry::new(kind, id, Outcome::Unavailable).note(reason));
        }
        let mut done = Outcome::Same;
        let mut mended = Sent::default();
        let mut tries = 0;
        loop {
            let actual = match self.find(wanted).await? {
                Ok(actual) => actual,
                Err(error) => return Ok(failed(wanted, &error)),
            };
            if let Some(actual) = &actual
                && is_going(&actual.object)
            {
                let fix = "run this again once Lago's worker has deleted it";
                return Ok(
                    Entry::new(kind, id, Outcome::Waiting).problem("Lago is deleting the one that is there", fix)
                );
            }
            let Some(actual) = actual else {
                if self.mode == Mode::Look {
                    return Ok(self.noted(Entry::new(kind, id, Outcome::Missing), wanted, None));
                }
                if let Some(entry) = self.wait_for_endpoint(wanted).await {
                    return Ok(entry);
                }
                match self.create(wanted).await {
                    Ok(()) if done == Outcome::Created => {
                        tries += 1;
                        let text = "Lago says that it has made it, and does not show it";
                        if tries >= TRIES {
                            let entry = Entry::new(kind, id, Outcome::Failed);
                            return Ok(entry.problem(text, "Lago's own log says more"));
                        }
                        self.patience.pause(text, None).await?;
                    }
                    Ok(()) => done = Outcome::Created,
                    Err(error) => {
                        if let Some(entry) = self.after(wanted, error, &mut tries).await? {
                            return Ok(entry);
                        }
                        // Lago may have done it all the same, or somebody else did.
                        done = Outcome::Created;
                    }
                }
                continue;
            };
            self.note_metric(wanted, &actual.object);
            let comparison = diff::compare(wanted, &actual.object, actual.granted.as_ref());
            let may_be_locked = kind == Kind::Plan && comparison.changes.iter().any(|change| change.is_locked);
            let in_use = may_be_locked && self.is_subscribed(id).await?;
            // What was sent already and is still otherwise, and what need not be sent.
            let is_stuck = |change: &Change| (in_use && change.is_locked) || mended.has(change);
            let open: Vec<&Change> = comparison.changes.iter().filter(|change| !is_stuck(change)).collect();
            let prunes = self.settings.prune && comparison.extras.iter().any(|extra| !mended.extras.contains(extra));
            if self.mode == Mode::Look || (open.is_empty() && !prunes) {
                let entry = self.judged(wanted, &comparison, done, &mended, is_stuck);
                return self.with_awaited(entry, wanted).await;
            }
            match self.mend(wanted, &actual.object, &comparison, &open).await {
                Ok(()) => {
                    if done == Outcome::Same {
                        done = Outcome::Updated;
                    }
                    mended.changes.extend(open.into_iter().cloned());
                    if self.settings.prune {
                        mended.extras.extend(comparison.extras);
                    }
                }
                Err(error) => {
                    if let Some(mut entry) = self.after(wanted, error, &mut tries).await? {
                        entry.changes = comparison.changes;
                        return Ok(entry);
                    }
                }
            }
        }
    }

    /// What is said of an object in the end.
    fn judged(
        &self,
        wanted: &Wanted,
        comparison: &Comparison,
        done: Outcome,
        mended: &Sent,
        is_stuck: impl Fn(&Change) -> bool,
    ) -> Entry {
        let mut entry = Entry::new(wanted.kind, &wanted.identity, done);
        entry.extras = comparison.extras.iter().map(Extra::text).collect();
        if self.mode == Mode::Look {
            let prunes = self.settings.prune && !comparison.extras.is_empty();
            if !comparison.changes.is_empty() || prunes {
                entry.outcome = Outcome::Differs;
            }
            entry.changes = comparison.changes.clone();
        } else if done == Outcome::Updated {
            entry.changes = mended.changes.clone();
        }
        for extra in &comparison.extras {
            let (text, fix) = match extra {
                _ if mended.extras.contains(extra) => (
                    format!("{} is still there, though Lago has answered that it is gone", extra.text()),
                    "take it away in Lago; its log says more",
                ),
                Extra::Twin(_) => (
                    format!("{} bills the same usage twice", extra.text()),
                    "--prune takes one of them away; or do that in Lago",
                ),
                Extra::Charge(_) | Extra::Entitlement { .. } => continue,
            };
            entry = entry.problem(text, fix);
            entry.outcome = if self.mode == Mode::Look { Outcome::Differs } else { Outcome::Failed };
        }
        for change in comparison.changes.iter().filter(|change| is_stuck(change)) {
            let (why, fix) = why_it_stays(wanted.kind, change);
            entry = entry.problem(format!("{} stays {}: {why}", change.field, change.lago), fix);
            entry.outcome = if self.mode == Mode::Look { Outcome::Differs } else { Outcome::Failed };
        }
        self.noted(entry, wanted, comparison.missing_ability)
    }

    /// With what Lago does by itself when the price of a plan changes that subscriptions are about to begin with.
    ///
    /// Source: getlago/lago-api `app/services/plans/update_service.rb` at v1.16.0 (`process_pending_subscriptions`) and at
    /// the head of 2026-08-21.
    async fn with_awaited(&self, entry: Entry, wanted: &Wanted) -> Result<Entry, RunError> {
        let has_new_price = entry.changes.iter().any(|change| change.field == "amount_cents");
        if wanted.kind != Kind::Plan || !has_new_price || self.mode == Mode::Apply {
            return Ok(entry);
        }
        let id = wanted.identity.as_str();
        let answer = self.patience.ask(async || self.api.is_awaited(id).await).await?;
        Ok(if answer.map_err(|error| other(&error))? {
            entry.note(
                "subscriptions are pending on it: with a new price Lago may end such a downgrade, or make and bill it at once",
            )
        } else {
            entry
        })
    }

    fn noted(&self, entry: Entry, wanted: &Wanted, missing_ability: Option<&str>) -> Entry {
        let entry = match missing_ability {
            Some(what) => entry.note(format!("this Lago has no {what}")),
            None => entry,
        };
        match (self.no_features, &wanted.entitlements) {
            (Some(reason), Some(_)) => entry.note(format!("entitlements are left out: {reason}")),
            _ => entry,
        }
    }

    /// What follows a request that failed: another attempt (`None`), or the end of it.
    async fn after(&self, wanted: &Wanted, error: ManagementError, tries: &mut u32) -> Result<Option<Entry>, RunError> {
        if error.is_denied() {
            return Err(RunError::Denied);
        }
        let is_odd = error.is_taken() || error.is_internal();
        *tries += u32::from(is_odd);
        let text = kit::error::chain(&error);
        if (is_odd && *tries >= TRIES) || !(is_odd || error.is_passing()) {
            let fix = if error.is_taken() {
                "something with this code is there and not shown, such as a plan that is being deleted: wait, or take another code"
            } else if error.is_internal() {
                "Lago's own log says what it could not digest"
            } else {
                "mend the catalogue, or what it needs first"
            };
            return Ok(Some(Entry::new(wanted.kind, &wanted.identity, Outcome::Failed).problem(text, fix)));
        }
        if error.is_taken() {
            // Somebody was faster: what they have made is looked at next.
            self.patience.answered();
        } else {
            let asked = match &error {
                ManagementError::TooMany(asked) => *asked,
                ManagementError::Api(ApiError::TooSlow | ApiError::Status(504)) if wanted.kind == Kind::Plan => {
                    Some(PLAN_SETTLES_WITHIN)
                }
                _ => None,
            };
            self.patience.pause(&text, asked).await?;
        }
        Ok(None)
    }

    async fn find(&self, wanted: &Wanted) -> Result<Result<Option<Actual>, ApiError>, RunError> {
        let (kind, id) = (wanted.kind, wanted.identity.as_str());
        let found = if kind == Kind::WebhookEndpoint {
            // Known by its address, which only the list tells.
            let all = self.patience.ask(async || self.api.objects(kind).await).await?;
            all.map(|all| all.into_iter().find(|one| one.get("webhook_url").and_then(Value::as_str) == Some(id)))
        } else {
            self.patience.ask(async || self.api.find(kind, id).await).await?
        };
        let object = match found {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(error)),
        };
        let granted = if wanted.entitlements.is_some() && self.no_features.is_none() {
            match self.patience.ask(async || self.api.entitlements(id).await).await? {
                Ok(shown) => Some(diff::entitlements_of(&shown)),
                Err(error) => return Ok(Err(error)),
            }
        } else {
            None
        };
        Ok(Ok(Some(Actual { object, granted })))
    }

    fn note_metric(&mut self, wanted: &Wanted, object: &Object) {
        if wanted.kind == Kind::BillableMetric
            && let Some(id) = object.get("lago_id").and_then(Value::as_str)
        {
            self.metric_ids.insert(wanted.identity.clone(), id.to_owned());
        }
    }

    async fn create(&self, wanted: &Wanted) -> Result<(), ManagementError> {
        let body = diff::creation(wanted, &self.metric_ids).map_err(|code| lacking(&code))?;
        self.api.create(wanted.kind, &body).await.map(drop)
    }

    async fn mend(
        &self,
        wanted: &Wanted,
        actual: &Object,
        comparison: &Comparison,
        changes: &[&Change],
    ) -> Result<(), ManagementError> {
        let how = (self.settings.prune, &self.metric_ids);
        let body = diff::update(wanted, actual, comparison, changes, how).map_err(|code| lacking(&code))?;
        if let Some(body) = body {
            let name = if wanted.kind == Kind::WebhookEndpoint { "lago_id" } else { "code" };
            let id = actual.get(name).and_then(Value::as_str).unwrap_or(&wanted.identity);
            self.api.update(wanted.kind, id, &body).await?;
        }
        let plan = wanted.identity.as_str();
        if changes.iter().any(|change| change.part == Part::Entitlements)
            && let Some(entitlements) = &wanted.entitlements
        {
            let all = json!(entitlements).as_object().cloned().unwrap_or_default();
            self.api.grant(plan, &all).await?;
        }
        if self.settings.prune {
            for extra in &comparison.extras {
                let Extra::Entitlement { feature, privilege } = extra else { continue };
                match self.api.revoke(plan, feature, privilege.as_deref()).await {
                    // Somebody was faster.
                    Ok(()) | Err(ManagementError::Refused { status: 404, .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    pub(crate) async fn is_subscribed(&self, plan: &str) -> Result<bool, RunError> {
        let answer = self.patience.ask(async || self.api.is_subscribed(plan).await).await?;
        answer.map_err(|error| other(&error))
    }

    /// Waits until something answers at a webhook endpoint that is to be registered: what Lago sends before that is lost
    /// after some twenty seconds. The entry where nothing does.
    async fn wait_for_endpoint(&self, wanted: &Wanted) -> Option<Entry> {
        let limit = self.settings.wait_for_endpoint;
        if wanted.kind != Kind::WebhookEndpoint || limit.is_zero() {
            return None;
        }
        let url = wanted.identity.as_str();
        let begun = Instant::now();
        let mut is_told = false;
        loop {
            // It takes posts only, and only signed ones: any answer will do that is not a proxy's for nobody behind it.
            let nobody = match self.client.get(url).send().await {
                Ok(answer) if matches!(answer.status().as_u16(), 502..=504) => {
                    format!("a proxy says {} in its place", answer.status())
                }
                Ok(_) => return None,
                Err(error) => kit::error::chain(&error.without_url()),
            };
            let waited = begun.elapsed();
            if waited >= limit {
                let text = format!("nothing answers there within {limit:?} ({nobody}), so it is not registered");
                let fix = "start what listens there and this again, or set SIDECAR_WAIT__ENDPOINT_SECONDS=0 (outrigger lago: without --wait-for-endpoint)";
                return Some(Entry::new(wanted.kind, url, Outcome::Waiting).problem(text, fix));
            }
            if !is_told {
                is_told = true;
                (self.notice)(Notice::WaitingForEndpoint { url: &shown_url(url), left: limit - waited });
            }
            tokio::time::sleep(BETWEEN_PROBES.min(limit - waited)).await;
        }
    }
}

/// A metric that could not be made either.
fn lacking(code: &str) -> ManagementError {
    let reason = format!("it charges the metric {code:?}, which Lago does not have");
    ManagementError::Refused { status: 404, reason, is_taken: false }
}

fn failed(wanted: &Wanted, error: &ApiError) -> Entry {
    let entry = Entry::new(wanted.kind, &wanted.identity, Outcome::Failed);
    entry.problem(kit::error::chain(error), "see that LAGO_API_URL is Lago's API and that its key may read this")
}

pub(crate) fn other(error: &ApiError) -> RunError {
    RunError::Other(kit::error::chain(error))
}

/// Why Lago keeps what it has, and what to do.
///
/// Source: getlago/lago-api `app/services/{billable_metrics,plans,coupons}/update_service.rb` at v1.16.0,
/// `app/services/entitlement/feature_update_service.rb` at the head of 2026-08-21.
fn why_it_stays(kind: Kind, change: &Change) -> (&'static str, &'static str) {
    match kind {
        Kind::BillableMetric if change.is_locked => (
            "of a metric that a plan charges Lago changes only name and description, and says nothing",
            "make a metric with a new code and charge that",
        ),
        Kind::Plan if change.is_locked => (
            "Lago never changes it in a plan that somebody subscribes to or has subscribed to",
            "make a plan with a new code and move its subscriptions there",
        ),
        Kind::Coupon if change.is_locked => (
            "of a coupon that a customer has Lago changes only name and expiration, and says nothing",
            "make a coupon with a new code",
        ),
        Kind::Feature if change.is_locked => {
            ("Lago never changes the type of a privilege", "make a privilege with a new code")
        }
        _ => (
            "Lago took the change and shows what it had",
            "without a licence Lago passes over what needs one; otherwise its log says more",
        ),
    }
}
