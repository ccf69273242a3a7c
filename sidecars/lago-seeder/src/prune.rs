//! What Lago has and the catalogue does not: shown, and deleted where that is asked for. Only of kinds that the catalogue has
//! any of: a catalogue without coupons says nothing about coupons. What others still need stays.

use std::collections::BTreeSet;

use kit_lago::api::ApiError;
use kit_lago::management::{Kind, ManagementError, Object};
use serde_json::Value;

use crate::lago::RunError;
use crate::report::{Entry, Outcome};
use crate::seeder::{Mode, Seeder, other};

impl Seeder<'_> {
    /// Everything besides, the last first: what needs others goes before them.
    pub(crate) async fn extras(&self) -> Result<Vec<Entry>, RunError> {
        let mut entries = Vec::new();
        for kind in Kind::ALL.into_iter().rev() {
            let wanted: BTreeSet<&str> = self.catalogue.identities(kind).into_iter().collect();
            if wanted.is_empty() {
                continue;
            }
            let listed = match self.patience.ask(async || self.api.objects(kind).await).await? {
                Ok(listed) => listed,
                // Said already.
                Err(ApiError::NotFound | ApiError::Denied(_)) if kind == Kind::Feature => continue,
                Err(error) => return Err(other(&error)),
            };
            let name = |object: &Object| object.get(kind.identity()).and_then(Value::as_str).map(str::to_owned);
            // What Lago is deleting already is shown until its worker has done it.
            let there = listed.iter().filter(|object| !is_going(object));
            let others = there.filter_map(|object| Some((name(object)?, object)));
            for (id, object) in others.filter(|(id, _)| !wanted.contains(id.as_str())) {
                entries.push(self.extra(kind, &id, object).await?);
            }
        }
        Ok(entries)
    }

    async fn extra(&self, kind: Kind, id: &str, object: &Object) -> Result<Entry, RunError> {
        if !self.settings.prune {
            return Ok(Entry::new(kind, id, Outcome::Extra));
        }
        if let Some(reason) = self.needed_by(kind, id, object).await? {
            return Ok(Entry::new(kind, id, Outcome::Extra).note(format!("it stays: {reason}")));
        }
        if self.mode == Mode::Look {
            return Ok(Entry::new(kind, id, Outcome::ToDelete));
        }
        let lago_id = object.get("lago_id").and_then(Value::as_str).unwrap_or(id);
        let name = if kind == Kind::WebhookEndpoint { lago_id } else { id };
        loop {
            match self.api.delete(kind, name).await {
                // Somebody was faster, or it was done the time before.
                Ok(()) | Err(ManagementError::Refused { status: 404, .. }) => {
                    self.patience.answered();
                    return Ok(Entry::new(kind, id, Outcome::Deleted));
                }
                Err(error) if error.is_denied() => return Err(RunError::Denied),
                Err(error) if error.is_passing() => self.patience.pause(&kit::error::chain(&error), None).await?,
                Err(error) => {
                    let text = format!("it is not deleted: {}", kit::error::chain(&error));
                    let fix = "delete it in Lago, or put it into the catalogue";
                    return Ok(Entry::new(kind, id, Outcome::Failed).problem(text, fix));
                }
            }
        }
    }

    /// Who would lose something with it. With a plan Lago ends its subscriptions, with a metric what plans charge for it, with
    /// a tax what it is on goes untaxed, with a coupon the discounts of those who have it, and with a feature what anybody is
    /// entitled to.
    ///
    /// Source: getlago/lago-api `app/services/{plans,billable_metrics,taxes,coupons}/destroy_service.rb`,
    /// `app/services/entitlement/feature_destroy_service.rb`, `app/serializers/v1/tax_serializer.rb`.
    async fn needed_by(&self, kind: Kind, id: &str, object: &Object) -> Result<Option<String>, RunError> {
        match kind {
            Kind::Plan if self.is_subscribed(id).await? => {
                Ok(Some("it has subscriptions, which Lago would end: move them to another plan first".to_owned()))
            }
            Kind::BillableMetric => {
                let listed = self.patience.ask(async || self.api.objects(Kind::Plan).await).await?;
                let plans = listed.map_err(|error| other(&error))?;
                let charges = |plan: &&Object| {
                    if is_going(plan) {
                        return false;
                    }
                    let charges = plan.get("charges").and_then(Value::as_array).into_iter().flatten();
                    charges.into_iter().any(|charge| charge["billable_metric_code"] == id)
                };
                let plan = plans.iter().find(charges).and_then(|plan| plan.get("code")?.as_str());
                // What was about to go in this same run is no reason, but was not deleted either.
                let stays =
                    |plan: &&str| self.mode == Mode::Apply || self.catalogue.identities(Kind::Plan).contains(plan);
                Ok(plan.filter(stays).map(|plan| format!("the plan {plan} charges it")))
            }
            Kind::Tax => {
                // Lago says of how many add-ons, customers, plans, charges and commitments it is, each in a count of its own.
                let is_count = |name: &str| name.ends_with("_count");
                let is_used = object.iter().any(|(name, count)| is_count(name) && count.as_u64() != Some(0));
                let is_for_all = object.get("applied_to_organization") == Some(&Value::Bool(true));
                let reason = "it is on everything that names no taxes, or on customers, plans, charges or add-ons, which would go untaxed: take it off them first";
                Ok((is_for_all || is_used).then(|| reason.to_owned()))
            }
            Kind::Coupon => {
                let reason = match self.patience.ask(async || self.api.is_coupon_applied(id).await).await? {
                    Ok(false) => None,
                    Ok(true) => Some("customers have it, whose discounts Lago would end".to_owned()),
                    Err(error) => {
                        let error = kit::error::chain(&error);
                        Some(format!("whether customers have it cannot be seen ({error})"))
                    }
                };
                Ok(reason.map(|reason| format!("{reason}: delete it in Lago, if that is meant")))
            }
            Kind::Feature => Ok(Some(
                "Lago would take it off every plan and subscription, and shows nowhere which have it: delete it in Lago, if that is meant"
                    .to_owned(),
            )),
            _ => Ok(None),
        }
    }
}

/// Whether Lago has noted that it is to be deleted, and its worker has not come to it: plans, in most versions.
///
/// Source: getlago/lago-api `app/services/plans/prepare_destroy_service.rb`.
pub(crate) fn is_going(object: &Object) -> bool {
    object.get("pending_deletion") == Some(&Value::Bool(true))
}
