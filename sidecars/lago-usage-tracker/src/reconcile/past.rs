//! Periods that have ended, beside what Lago has put on their invoices (`past_usage`).
//!
//! The last period of a subscription is compared once its invoice is final: Lago counts drafts anew every few minutes. Of
//! a subscription that has ended the last period is the one that was the current one.

use std::collections::BTreeMap;
use std::time::Duration;

use kit::clock::Timestamp;
use kit_lago::api::{ApiError, InvoiceStatus, PastUsage};
use kit_lago::usage::Quantity;

use super::{Compared, Counted, Drift, Ours, PAUSE, Reconciler, Round, State, compare, counted};
use crate::catalogue::Catalogue;
use crate::ledger::{Booked, Name, Pair, Period};

/// Where Lago has no final invoice yet, it is asked again after this long. It makes invoices once an hour.
const AGAIN_MILLIS: i64 = 3_600_000;

/// How a period that has ended stands.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// As the ledger has it.
    pub(crate) booked: Booked,
    pub(crate) compared: Compared,
    pub(super) invoice: Invoice,
    /// When Lago was asked; later than the comparison where it has not answered.
    asked_at: Timestamp,
}

/// What Lago has made of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invoice {
    /// Nothing yet: its clock makes invoices once an hour.
    None,
    /// A draft, or it does not say.
    Open,
    /// Its last word.
    Final,
}

/// How the plan of a period charges a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charged {
    /// On the period's invoice.
    Afterwards,
    /// Event by event, on other invoices or on none.
    InAdvance,
    Never,
}

/// Whether Lago has an active subscription of this name.
pub(super) fn is_active(catalogue: &Catalogue, subscription: &str) -> bool {
    catalogue.subscriptions(subscription).iter().any(|own| own.terminated_at.is_none())
}

impl Reconciler {
    /// Compares what is on invoices.
    pub(super) async fn compare_ended(&self, all: bool, settling: Duration, round: &mut Round) {
        let Some(catalogue) = self.known.current().catalogue else { return };
        let mut due: Vec<_> = self.ended(all, settling, &catalogue).into_iter().collect();
        self.books.results().gave_up_at[1].order(&mut due, |(subscription, _)| subscription);
        round.unanswered.begin_anew();
        for (subscription, pairs) in due {
            let usage = round.unanswered.note(self.ask_past(&subscription, &catalogue).await);
            for (name, booked) in pairs {
                let compared = match &usage {
                    Some(usage) => {
                        let compared = self.compare_invoiced(&name, &booked, usage.as_deref(), &catalogue).await;
                        let compared = round.unanswered.note(compared);
                        compared.map(|(compared, invoice)| (self.unless_accepted(&name, &booked, compared), invoice))
                    }
                    None => None,
                };
                if let Some((compared, _)) = compared.as_ref().filter(|(compared, _)| compared.state == State::Missing)
                {
                    round.drifted.push(Drift::new(&name, &booked, compared));
                }
                self.note_ended(name, booked, compared);
            }
            if round.unanswered.gives_up() {
                self.books.results().gave_up_at[1].note(&subscription);
                break;
            }
        }
    }

    /// What is missing is accepted where a person has said so of as much.
    fn unless_accepted(&self, name: &Name, booked: &Booked, compared: Compared) -> Compared {
        let is_missing = compared.state == State::Missing;
        let is_accepted =
            is_missing && self.books.accepted().get(name).is_some_and(|accepted| accepted.covers(booked, &compared));
        if is_accepted { Compared { state: State::Accepted, ..compared } } else { compared }
    }

    /// Notes a comparison, and what Lago has made of the period. What was missing stays so until Lago says otherwise, and
    /// what had no invoice until it says anything.
    fn note_ended(&self, name: Name, booked: Booked, compared: Option<(Compared, Invoice)>) {
        let now = self.clock.now();
        let mut results = self.books.results();
        if let Some(known) = results.ended.get_mut(&name).filter(|known| known.booked.period == booked.period) {
            let is_missing = matches!(known.compared.state, State::Missing | State::Accepted);
            let says_nothing = compared.as_ref().is_none_or(|(compared, _)| compared.state == State::Unknown);
            let is_unanswered = compared.is_none() && known.invoice == Invoice::None;
            if (is_missing && says_nothing) || is_unanswered {
                known.asked_at = now;
                return;
            }
        }
        let (compared, invoice) = compared.unwrap_or((Compared::of_state(State::Unknown, now), Invoice::Open));
        results.ended.insert(name, Ended { booked, compared, invoice, asked_at: now });
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
                let is_open = known.invoice != Invoice::Final || known.compared.state == State::Missing;
                is_open && known.asked_at.plus_millis(AGAIN_MILLIS) <= now
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

    /// The comparison, and what Lago has made of the period.
    async fn compare_invoiced(
        &self,
        name: &Name,
        booked: &Booked,
        usage: Option<&[PastUsage]>,
        catalogue: &Catalogue,
    ) -> Result<(Compared, Invoice), ApiError> {
        let at = self.clock.now();
        let Some(usage) = usage else { return Ok((Compared::of_state(State::Unknown, at), Invoice::Open)) };
        // The end is another one where the subscription was terminated.
        let own: Vec<&PastUsage> = usage.iter().filter(|past| past.from_datetime == booked.period.from).collect();
        if own.is_empty() || own.iter().any(|past| past.lago_invoice_id.is_none()) {
            return Ok((Compared::of_state(State::Settling, at), Invoice::None));
        }
        if !self.are_final(&own).await? {
            return Ok((Compared::of_state(State::Settling, at), Invoice::Open));
        }
        let charges = own.iter().flat_map(|past| &past.charges_usage);
        let sum = &booked.sum;
        let ours = Ours::new((sum, sum), booked.unsure, Some(catalogue), &name.1);
        let compared = compare(&ours, counted(charges, &name.1), at);
        if !matches!(compared.state, State::Missing | State::NotCharged) {
            return Ok((compared, Invoice::Final));
        }
        // A charge that has counted nothing is not on an invoice, nor is one that is paid in advance on this one.
        match self.how_charged(name, booked, catalogue).await? {
            None => Ok((Compared::of_state(State::Unknown, at), Invoice::Open)),
            Some(Charged::InAdvance) => Ok((Compared::of_state(State::Unknown, at), Invoice::Final)),
            Some(Charged::Afterwards) if compared.state == State::NotCharged => {
                let nothing = Counted { events: 0, units: Quantity::default() };
                Ok((compare(&ours, Some(nothing), at), Invoice::Final))
            }
            Some(Charged::Afterwards | Charged::Never) => Ok((compared, Invoice::Final)),
        }
    }

    /// How the plan of a period charges its metric; `None` where Lago does not say.
    async fn how_charged(
        &self,
        (subscription, code): &Name,
        booked: &Booked,
        catalogue: &Catalogue,
    ) -> Result<Option<Charged>, ApiError> {
        let Period { from, to } = booked.period;
        let mut own = catalogue.subscriptions(subscription).iter().filter(|own| {
            own.started_at.is_none_or(|started| started <= to) && own.terminated_at.is_none_or(|ended| ended > from)
        });
        let Some(plan) = own.next().and_then(|own| own.plan_code.as_deref()) else { return Ok(None) };
        tokio::time::sleep(PAUSE).await;
        let charges = says(self.api.plan_charges(plan).await)?;
        Ok(charges.map(|charges| {
            let of_code: Vec<_> = charges.iter().filter(|charge| charge.billable_metric_code == *code).collect();
            match of_code.as_slice() {
                [] => Charged::Never,
                all if all.iter().all(|charge| charge.pay_in_advance) => Charged::InAdvance,
                _ => Charged::Afterwards,
            }
        }))
    }

    async fn are_final(&self, own: &[&PastUsage]) -> Result<bool, ApiError> {
        for past in own {
            // Nothing without one comes here.
            let Some(id) = &past.lago_invoice_id else { return Ok(false) };
            tokio::time::sleep(PAUSE).await;
            if says(self.api.invoice_status(id).await)? != Some(InvoiceStatus::Final) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// How long ago the first of the periods had ended that Lago has put on no invoice, when it was last asked.
pub(super) fn uninvoiced<'a>(ended: impl IntoIterator<Item = &'a Ended>) -> Duration {
    let without = ended.into_iter().filter(|ended| ended.invoice == Invoice::None);
    without.map(|ended| ended.compared.at.since(ended.booked.period.to)).max().unwrap_or_default()
}

/// The last period that has ended and is known well enough to be compared.
fn last_ended(pair: &Pair, is_active: bool) -> Option<&Booked> {
    let last = pair.current.as_ref().filter(|_| !is_active).or_else(|| pair.ended.first());
    last.filter(|booked| !booked.cut && booked.sum.events > 0)
}

/// Lago gives no answer, or never says it to whoever has our right.
fn says<T>(answer: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        // Whoever has another right than to read invoices goes on without.
        Err(error @ (ApiError::Denied(403) | ApiError::NotFound)) => {
            tracing::debug!(error = %error, "Lago does not say what it has put on an invoice: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
