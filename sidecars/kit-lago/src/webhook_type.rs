//! The table of everything Lago can announce: 76 names and one alias.
//!
//! The names, the payload keys and the versions come from getlago/lago-api
//! `app/jobs/send_webhook_job.rb` and `config/webhook_event_types.yml`, read at tag v1.16.0 and at
//! the head of 2026-08-21 (just after v1.51.0). A type that is not here is not an error: Lago adds
//! types with every release, and an unknown one passes through.

/// One thing Lago announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WebhookType {
    /// Catalogue name, for example `invoice.created`. One body name differs: [`catalogue_alias`].
    pub name: &'static str,
    /// Value of `object_type`, which is also the key of the payload in the body. Often not the
    /// first half of the name.
    pub object_type: &'static str,
    /// First release that has it, for example `1.47.0`; `None` when v1.16.0 has it already, and
    /// [`UNRELEASED`] when only the head of 2026-08-21 does.
    pub since: Option<&'static str>,
    /// Gone from the head of 2026-08-21, still sent by older installations.
    pub removed: bool,
    /// What it counts as in `business_events_total`, if anything.
    pub business: Option<Business>,
    /// When Lago sends it, in a few words.
    pub description: &'static str,
}

/// Value of [`WebhookType::since`] for types that no release tag had when the table was written.
pub const UNRELEASED: &str = "unreleased after 1.51.0";

/// How a type is counted in `business_events_total{event_type,status}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Business {
    /// Always the same pair.
    Is(BusinessEvent),
    /// A payment whose status stands in the payload's `payment_status`.
    PaymentStatus,
}

/// Label pair of `business_events_total`. Both come from this module's literals only, so the
/// number of series is bounded whatever a sender writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BusinessEvent {
    /// Label `event_type`: `payment`, `refund`, `invoice`, `subscription`, `wallet`, `usage`,
    /// `alert`.
    pub event_type: &'static str,
    /// Label `status`.
    pub status: &'static str,
}

/// Every known type, ordered by name.
pub fn all() -> &'static [WebhookType] {
    TYPES
}

/// The row of a type, by its catalogue name or by the name the body carries.
pub fn find(name: &str) -> Option<&'static WebhookType> {
    let name = catalogue_alias(name).unwrap_or(name);
    let index = TYPES.binary_search_by(|row| row.name.cmp(name)).ok()?;
    TYPES.get(index)
}

/// The catalogue name of a type whose body carries another one.
///
/// There is exactly one: a failed refund is `credit_note.provider_refund_failure` in the catalogue
/// and in endpoint filters, and `credit_note.refund_failure` in the body.
/// Source: getlago/lago-api `app/services/webhooks/credit_notes/payment_provider_refund_failure_service.rb`
/// at v1.16.0 and at the head of 2026-08-21.
pub fn catalogue_alias(body_name: &str) -> Option<&'static str> {
    (body_name == REFUND_FAILURE_BODY).then_some(REFUND_FAILURE_CATALOGUE)
}

/// The name the body of a catalogue type carries: the inverse of [`catalogue_alias`].
pub fn body_name(catalogue_name: &str) -> &str {
    if catalogue_name == REFUND_FAILURE_CATALOGUE { REFUND_FAILURE_BODY } else { catalogue_name }
}

/// What a webhook counts as in `business_events_total`, or `None` for what is not business.
///
/// `payment_status` is the payload's field of that name. It counts announcements, not payments:
/// Lago tells of one failed charge both as `invoice.payment_failure` and as
/// `invoice.payment_status_updated`.
pub fn business_event(name: &str, payment_status: Option<&str>) -> Option<BusinessEvent> {
    match find(name)?.business? {
        Business::Is(event) => Some(event),
        Business::PaymentStatus => {
            let status = match payment_status {
                Some("succeeded") => "succeeded",
                Some("failed") => "failed",
                Some("pending") => "pending",
                _ => "other",
            };
            Some(BusinessEvent { event_type: "payment", status })
        }
    }
}

const REFUND_FAILURE_BODY: &str = "credit_note.refund_failure";
const REFUND_FAILURE_CATALOGUE: &str = "credit_note.provider_refund_failure";

const fn is(event_type: &'static str, status: &'static str) -> Option<Business> {
    Some(Business::Is(BusinessEvent { event_type, status }))
}

const fn row(
    name: &'static str,
    object_type: &'static str,
    since: Option<&'static str>,
    business: Option<Business>,
    description: &'static str,
) -> WebhookType {
    WebhookType { name, object_type, since, removed: false, business, description }
}

const PAYMENT_STATUS: Option<Business> = Some(Business::PaymentStatus);
const HEAD: Option<&str> = Some(UNRELEASED);

#[rustfmt::skip]
const TYPES: &[WebhookType] = &[
    row("alert.triggered", "triggered_alert", Some("1.29.0"), is("alert", "triggered"), "alert thresholds crossed (premium)"),
    row("billable_metric.created", "billable_metric", Some("1.47.0"), None, "billable metric added to the catalogue"),
    row("billable_metric.deleted", "billable_metric", Some("1.47.0"), None, "billable metric removed from the catalogue"),
    row("billable_metric.updated", "billable_metric", Some("1.47.0"), None, "billable metric changed"),
    row("credit_note.created", "credit_note", None, None, "credit note issued"),
    row("credit_note.generated", "credit_note", None, None, "credit note's PDF is ready"),
    row("credit_note.provider_refund_failure", "credit_note_payment_provider_refund_error", None, is("refund", "failed"), "refund failed at the payment provider"),
    row("customer.accounting_provider_created", "customer", None, None, "customer synced to accounting"),
    row("customer.accounting_provider_error", "accounting_provider_customer_error", None, None, "customer sync to accounting failed"),
    row("customer.checkout_url_generated", "payment_provider_customer_checkout_url", None, None, "hosted checkout link is ready"),
    row("customer.created", "customer", None, None, "customer created; before v1.17.0 sent on every upsert through the API"),
    row("customer.crm_provider_created", "customer", None, None, "customer synced to the CRM"),
    row("customer.crm_provider_error", "crm_provider_customer_error", None, None, "customer sync to the CRM failed"),
    row("customer.payment_provider_created", "customer", None, None, "customer synced to the payment provider"),
    row("customer.payment_provider_error", "payment_provider_customer_error", None, None, "customer sync to the payment provider failed"),
    row("customer.tax_provider_error", "tax_provider_customer_error", None, None, "tax look-up for a customer failed"),
    row("customer.updated", "customer", None, None, "customer changed"),
    row("customer.vies_check", "customer", None, None, "result of the EU VAT check"),
    row("dunning_campaign.finished", "dunning_campaign", Some("1.32.2"), is("payment", "dunning_finished"), "dunning attempts exhausted (premium)"),
    row("event.error", "event_error", None, is("usage", "error"), "one usage event failed after it was accepted"),
    row("events.errors", "events_errors", None, is("usage", "error"), "hourly summary of bad usage events"),
    row("feature.created", "feature", Some("1.32.0"), None, "entitlement feature added"),
    row("feature.deleted", "feature", Some("1.32.0"), None, "entitlement feature removed"),
    row("feature.updated", "feature", Some("1.32.0"), None, "entitlement feature changed"),
    row("fee.created", "fee", None, None, "fee of a charge paid in advance"),
    row("fee.tax_provider_error", "tax_provider_fee_error", None, None, "tax look-up for a fee failed"),
    row("integration.provider_error", "provider_error", None, None, "an integration failed"),
    WebhookType { removed: true, ..row("invoice.add_on_added", "invoice", None, is("invoice", "add_on_added"), "invoice of an applied add-on") },
    row("invoice.created", "invoice", None, is("invoice", "created"), "subscription, progressive or advance invoice finalised"),
    row("invoice.deleted", "invoice", Some("1.51.0"), is("invoice", "deleted"), "draft invoice deleted"),
    row("invoice.drafted", "invoice", None, is("invoice", "drafted"), "draft invoice in its grace period"),
    row("invoice.generated", "invoice", None, is("invoice", "generated"), "invoice's PDF is ready"),
    row("invoice.one_off_created", "invoice", None, is("invoice", "one_off_created"), "one-off invoice issued"),
    row("invoice.paid_credit_added", "invoice", None, is("invoice", "paid_credit_added"), "invoice of prepaid credits"),
    row("invoice.payment_dispute_lost", "payment_dispute_lost", None, is("payment", "dispute_lost"), "chargeback lost"),
    row("invoice.payment_failure", "payment_provider_invoice_payment_error", None, is("payment", "failed"), "charge of an invoice failed at the payment provider"),
    row("invoice.payment_overdue", "invoice", None, is("invoice", "overdue"), "due date passed"),
    row("invoice.payment_status_updated", "invoice", None, PAYMENT_STATUS, "payment status of an invoice changed"),
    row("invoice.ready_to_finalize", "invoice", Some("1.47.0"), is("invoice", "ready_to_finalize"), "draft with its taxes resolved"),
    row("invoice.resynced", "invoice", None, is("invoice", "resynced"), "invoice pushed to the CRM again"),
    row("invoice.voided", "invoice", None, is("invoice", "voided"), "invoice voided"),
    row("order.created", "order", HEAD, None, "order created (premium)"),
    row("order.executed", "order", HEAD, None, "order executed (premium)"),
    row("order_form.created", "order_form", HEAD, None, "order form created (premium)"),
    row("order_form.expired", "order_form", HEAD, None, "order form expired (premium)"),
    row("order_form.signed", "order_form", HEAD, None, "order form signed (premium)"),
    row("order_form.voided", "order_form", HEAD, None, "order form voided (premium)"),
    row("payment.requires_action", "payment", None, is("payment", "requires_action"), "payment waits for the payer, for example 3-D Secure"),
    row("payment.succeeded", "payment", Some("1.43.0"), is("payment", "succeeded"), "payment done at the payment provider"),
    row("payment_provider.error", "payment_provider_error", None, is("payment", "provider_error"), "connection to the payment provider failed"),
    row("payment_receipt.created", "payment_receipt", Some("1.23.0"), None, "payment receipt issued"),
    row("payment_receipt.generated", "payment_receipt", Some("1.23.0"), None, "payment receipt's PDF is ready"),
    row("payment_request.created", "payment_request", None, is("payment", "requested"), "payment requested by dunning (premium)"),
    row("payment_request.payment_failure", "payment_provider_payment_request_payment_error", None, is("payment", "failed"), "charge of a payment request failed at the payment provider"),
    row("payment_request.payment_status_updated", "payment_request", None, PAYMENT_STATUS, "payment status of a payment request changed (premium)"),
    row("plan.created", "plan", Some("1.32.0"), None, "plan added to the catalogue"),
    row("plan.deleted", "plan", Some("1.32.0"), None, "plan removed from the catalogue"),
    row("plan.updated", "plan", Some("1.32.0"), None, "plan changed"),
    row("quote.approved", "quote", HEAD, None, "quote approved (premium)"),
    row("quote.created", "quote", HEAD, None, "quote created (premium)"),
    row("quote.voided", "quote", HEAD, None, "quote voided (premium)"),
    row("subscription.canceled", "subscription", Some("1.45.2"), is("subscription", "canceled"), "subscription canceled by an activation rule"),
    row("subscription.incomplete", "subscription", Some("1.45.2"), is("subscription", "incomplete"), "subscription waits for an activation rule"),
    row("subscription.started", "subscription", None, is("subscription", "started"), "subscription started"),
    row("subscription.terminated", "subscription", None, is("subscription", "terminated"), "subscription terminated"),
    row("subscription.termination_alert", "subscription", None, is("subscription", "termination_alert"), "some days before the subscription ends"),
    row("subscription.trial_ended", "subscription", None, is("subscription", "trial_ended"), "trial over"),
    row("subscription.updated", "subscription", Some("1.22.0"), is("subscription", "updated"), "subscription changed, also a cancelled downgrade"),
    row("subscription.usage_threshold_reached", "subscription", None, is("subscription", "usage_threshold_reached"), "progressive billing threshold reached (premium)"),
    row("wallet.created", "wallet", Some("1.22.0"), is("wallet", "created"), "wallet created"),
    row("wallet.depleted_ongoing_balance", "wallet", None, is("wallet", "depleted"), "ongoing balance at or below zero"),
    row("wallet.terminated", "wallet", Some("1.22.0"), is("wallet", "terminated"), "wallet terminated"),
    row("wallet.updated", "wallet", Some("1.22.0"), is("wallet", "updated"), "wallet changed"),
    row("wallet_transaction.created", "wallet_transaction", None, is("wallet", "transaction_created"), "credits moved"),
    row("wallet_transaction.payment_failure", "payment_provider_wallet_transaction_payment_error", None, is("payment", "failed"), "charge of a top-up failed at the payment provider"),
    row("wallet_transaction.updated", "wallet_transaction", None, is("wallet", "transaction_updated"), "movement of credits changed state"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_ordered_by_name_so_that_it_can_be_searched() {
        assert!(TYPES.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn every_row_is_found_by_its_own_name_and_by_the_name_in_the_body() {
        for row in all() {
            assert_eq!(find(row.name), Some(row));
            assert_eq!(find(body_name(row.name)), Some(row));
        }
    }

    #[test]
    fn there_is_exactly_one_alias_and_it_has_an_inverse() {
        let aliased: Vec<_> = all().iter().filter(|row| body_name(row.name) != row.name).collect();

        assert_eq!(aliased.len(), 1);
        assert_eq!(catalogue_alias(body_name(aliased[0].name)), Some(aliased[0].name));
        assert_eq!(catalogue_alias(aliased[0].name), None);
    }

    #[test]
    fn an_unknown_payment_status_does_not_become_a_label() {
        let event = business_event("invoice.payment_status_updated", Some("evil{x=\"1\"}"));

        assert_eq!(event, Some(BusinessEvent { event_type: "payment", status: "other" }));
        assert_eq!(business_event("something.new", None), None);
    }

    #[test]
    fn failed_payments_carry_the_labels_that_existing_alert_rules_expect() {
        let failed = Some(BusinessEvent { event_type: "payment", status: "failed" });

        assert_eq!(business_event("invoice.payment_failure", None), failed);
        assert_eq!(business_event("wallet_transaction.payment_failure", None), failed);
        assert_eq!(business_event("payment_request.payment_failure", None), failed);
        assert_eq!(business_event("invoice.payment_status_updated", Some("failed")), failed);
    }
}
