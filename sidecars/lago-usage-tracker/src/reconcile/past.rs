//! Periods that have ended, beside what Lago has put on their invoices (`past_usage`).
//!
//! The last period of a subscription is compared once its invoice is final: Lago counts drafts anew every few minutes. Of
//! a subscription that has ended the last period is the one that was the current one.

use std::collections::BTreeMap;
use std::time::Duration;

use kit_lago::api::{ApiError, InvoiceStatus, PastUsage};

use super::{Compared, Drift, Ours, PAUSE, Reconciler, State, compare, counted};
use crate::catalogue::Catalogue;
use crate::ledger::{Booked, Name, Pair};

/// Where Lago has no final invoice yet, it is asked again after this long. It makes invoices once an hour.
const AGAIN_MILLIS: i64 = 3_600_000;

/// How a period that has ended stands.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// As the ledger has it.
    pub(crate) booked: Booked,
    pub(crate) compared: Compared,
    /// Lago has said its last word.
    is_final: bool,
}

/// Whether Lago has an active subscription of this name.
pub(super) fn is_active(catalogue: &Catalogue, subscription: &str) -> bool {
    catalogue.subscriptions(subscription).iter().any(|own| own.terminated_at.is_none())
}

impl Reconciler {
    /// Gives the pairs of which something is missing on an invoice.
    pub(super) async fn compare_ended(&self, all: bool, settling: Duration) -> Result<Vec<Drift>, ApiError> {
        let Some(catalogue) = self.known.current().catalogue else { return Ok(Vec::new()) };
        let mut drifted = Vec::new();
        for (subscription, pairs) in self.ended(all, settling, &catalogue) {
            let usage = self.ask_past(&subscription, &catalogue).await?;
            for (name, booked) in pairs {
                let (compared, is_final) = self.compare_invoiced(&name, &booked, usage.as_deref(), &catalogue).await?;
                if compared.state == State::Missing {
                    drifted.push(Drift::new(&name, &booked, &compared));
                }
                self.books.results().ended.insert(name, Ended { booked, compared, is_final });
            }
        }
        Ok(drifted)
    }

    /// The periods that are to be compared, by subscription.
    fn ended(&self, all: bool, settling: Duration, catalogue: &Catalogue) -> BTreeMap<String, Vec<(Name, Booked)>> {
        let now = self.clock.now();
        let settled_before = now.plus_millis(-i64::try_from(settling.as_millis()).unwrap_or(i64::MAX));
        let ledger = self.books.ledger();
        let results = self.books.results();
        let is_due = |name: &Name, booked: &Booked| {
            let known = results.ended.get(name).filter(|known| !all && known.booked == *booked);
            known.is_none_or(|known| {
                // What is missing is told again: a gateway may not have taken it, and an invoice may be made anew.
                let is_open = !known.is_final || known.compared.state == State::Missing;
                is_open && known.compared.at.plus_millis(AGAIN_MILLIS) <= now
            })
        };
        let mut due: BTreeMap<String, Vec<(Name, Booked)>> = BTreeMap::new();
        for (name, pair) in ledger.pairs(None).filter(|(_, pair)| pair.changed_at <= settled_before) {
            let booked = last_ended(pair, is_active(catalogue, &name.0));
            if let Some(booked) = booked.filter(|booked| is_due(name, booked)) {
                due.entry(name.0.clone()).or_default().push((name.clone(), booked.clone()));
            }
        }
        due
    }

    /// What is on the invoices of a subscription; `None` where Lago does not say.
    async fn ask_past(&self, subscription: &str, catalogue: &Catalogue) -> Result<Option<Vec<PastUsage>>, ApiError> {
        let own = catalogue.subscriptions(subscription).last();
        let Some(customer) = own.map(|own| &own.external_customer_id) else { return Ok(None) };
        tokio::time::sleep(PAUSE).await;
        says(self.api.past_usage(customer, subscription).await)
    }

    /// The comparison, and whether it is the last one.
    async fn compare_invoiced(
        &self,
        name: &Name,
        booked: &Booked,
        usage: Option<&[PastUsage]>,
        catalogue: &Catalogue,
    ) -> Result<(Compared, bool), ApiError> {
        let at = self.clock.now();
        let of_state = |state| Compared { state, at, lago: None, missing_events: 0, surplus_events: 0 };
        let Some(usage) = usage else { return Ok((of_state(State::Unknown), false)) };
        // The end is another one where the subscription was terminated.
        let own: Vec<&PastUsage> = usage.iter().filter(|past| past.from_datetime == booked.period.from).collect();
        if own.is_empty() || !self.are_final(&own).await? {
            return Ok((of_state(State::Settling), false));
        }
        let charges = own.iter().flat_map(|past| &past.charges_usage);
        let sum = &booked.sum;
        let ours = Ours::new((sum, sum), booked.unsure, Some(catalogue), &name.1);
        Ok((compare(&ours, counted(charges, &name.1), at), true))
    }

    async fn are_final(&self, own: &[&PastUsage]) -> Result<bool, ApiError> {
        for past in own {
            let Some(id) = &past.lago_invoice_id else { return Ok(false) };
            tokio::time::sleep(PAUSE).await;
            if says(self.api.invoice_status(id).await)? != Some(InvoiceStatus::Final) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The last period that has ended and is known well enough to be compared.
fn last_ended(pair: &Pair, is_active: bool) -> Option<&Booked> {
    let last = pair.current.as_ref().filter(|_| !is_active).or_else(|| pair.ended.first());
    last.filter(|booked| !booked.cut && booked.sum.events > 0)
}

/// Lago is away, or does not say of this one.
fn says<T>(answer: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error @ (ApiError::Unreachable(_) | ApiError::Denied(401) | ApiError::Status(502..=504))) => Err(error),
        // Whoever has another right than to read invoices goes on without.
        Err(error) => {
            tracing::debug!(error = %error, "Lago does not say what it has put on an invoice: {error}");
            Ok(None)
        }
    }
}
