//! The table against the contract, typed out a second time.

use std::collections::BTreeSet;

use kit_lago::webhook_type::{UNRELEASED, all, body_name, catalogue_alias, find};

/// `name object_type`, one a line, in the contract's order. "v1.16.0" where that release had it.
const CONTRACT: &str = "
alert.triggered triggered_alert 1.29.0
billable_metric.created billable_metric 1.47.0
billable_metric.updated billable_metric 1.47.0
billable_metric.deleted billable_metric 1.47.0
credit_note.created credit_note v1.16.0
credit_note.generated credit_note v1.16.0
credit_note.provider_refund_failure credit_note_payment_provider_refund_error v1.16.0
customer.created customer v1.16.0
customer.updated customer v1.16.0
customer.accounting_provider_created customer v1.16.0
customer.crm_provider_created customer v1.16.0
customer.payment_provider_created customer v1.16.0
customer.accounting_provider_error accounting_provider_customer_error v1.16.0
customer.crm_provider_error crm_provider_customer_error v1.16.0
customer.payment_provider_error payment_provider_customer_error v1.16.0
customer.checkout_url_generated payment_provider_customer_checkout_url v1.16.0
customer.tax_provider_error tax_provider_customer_error v1.16.0
customer.vies_check customer v1.16.0
dunning_campaign.finished dunning_campaign 1.32.2
event.error event_error v1.16.0
events.errors events_errors v1.16.0
feature.created feature 1.32.0
feature.updated feature 1.32.0
feature.deleted feature 1.32.0
fee.created fee v1.16.0
fee.tax_provider_error tax_provider_fee_error v1.16.0
integration.provider_error provider_error v1.16.0
invoice.add_on_added invoice v1.16.0
invoice.created invoice v1.16.0
invoice.one_off_created invoice v1.16.0
invoice.paid_credit_added invoice v1.16.0
invoice.generated invoice v1.16.0
invoice.drafted invoice v1.16.0
invoice.voided invoice v1.16.0
invoice.ready_to_finalize invoice 1.47.0
invoice.deleted invoice 1.51.0
invoice.payment_dispute_lost payment_dispute_lost v1.16.0
invoice.payment_status_updated invoice v1.16.0
invoice.payment_overdue invoice v1.16.0
invoice.payment_failure payment_provider_invoice_payment_error v1.16.0
invoice.resynced invoice v1.16.0
order.created order HEAD
order.executed order HEAD
order_form.created order_form HEAD
order_form.signed order_form HEAD
order_form.expired order_form HEAD
order_form.voided order_form HEAD
quote.created quote HEAD
quote.approved quote HEAD
quote.voided quote HEAD
payment.requires_action payment v1.16.0
payment.succeeded payment 1.43.0
payment_provider.error payment_provider_error v1.16.0
payment_receipt.created payment_receipt 1.23.0
payment_receipt.generated payment_receipt 1.23.0
payment_request.created payment_request v1.16.0
payment_request.payment_status_updated payment_request v1.16.0
payment_request.payment_failure payment_provider_payment_request_payment_error v1.16.0
plan.created plan 1.32.0
plan.updated plan 1.32.0
plan.deleted plan 1.32.0
subscription.started subscription v1.16.0
subscription.terminated subscription v1.16.0
subscription.termination_alert subscription v1.16.0
subscription.trial_ended subscription v1.16.0
subscription.usage_threshold_reached subscription v1.16.0
subscription.updated subscription 1.22.0
subscription.canceled subscription 1.45.2
subscription.incomplete subscription 1.45.2
wallet.created wallet 1.22.0
wallet.updated wallet 1.22.0
wallet.terminated wallet 1.22.0
wallet.depleted_ongoing_balance wallet v1.16.0
wallet_transaction.created wallet_transaction v1.16.0
wallet_transaction.updated wallet_transaction v1.16.0
wallet_transaction.payment_failure payment_provider_wallet_transaction_payment_error v1.16.0
";

/// The contract's rows: name, payload key, first release.
pub(crate) fn contract() -> Vec<(&'static str, &'static str, &'static str)> {
    CONTRACT
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut words = line.split(' ');
            (words.next().unwrap(), words.next().unwrap(), words.next().unwrap())
        })
        .collect()
}

#[test]
fn the_table_holds_exactly_the_types_of_the_contract() {
    let contract: BTreeSet<_> = contract()
        .into_iter()
        .map(|(name, object_type, since)| {
            let since = match since {
                "v1.16.0" => None,
                "HEAD" => Some(UNRELEASED),
                version => Some(version),
            };
            (name, object_type, since)
        })
        .collect();

    let table: BTreeSet<_> = all().iter().map(|row| (row.name, row.object_type, row.since)).collect();

    assert_eq!(table, contract);
}

#[test]
fn there_are_75_types_at_the_head_one_removed_one_and_45_in_the_first_version() {
    let removed: Vec<_> = all().iter().filter(|row| row.removed).map(|row| row.name).collect();

    assert_eq!(all().len(), 76);
    assert_eq!(removed, ["invoice.add_on_added"]);
    assert_eq!(all().iter().filter(|row| row.since.is_none()).count(), 45);
}

#[test]
fn every_type_says_what_it_is_for_and_is_found() {
    for row in all() {
        assert!(!row.description.is_empty(), "{}", row.name);
        assert_eq!(find(row.name), Some(row));
    }
    for unknown in ["", "invoice", "invoice.", "Invoice.created", "invoice.created ", "zzz"] {
        assert_eq!(find(unknown), None, "{unknown}");
    }
}

#[test]
fn the_one_type_with_two_names_is_known_by_both() {
    let body = "credit_note.refund_failure";
    let catalogue = "credit_note.provider_refund_failure";

    assert_eq!(catalogue_alias(body), Some(catalogue));
    assert_eq!(body_name(catalogue), body);
    assert_eq!(find(body).unwrap().name, catalogue);
}

#[test]
fn the_labels_of_business_events_are_few() {
    let labels: BTreeSet<_> = all()
        .iter()
        .flat_map(|row| {
            [None, Some("succeeded"), Some("failed"), Some("pending"), Some("x")]
                .map(|status| kit_lago::webhook_type::business_event(row.name, status))
        })
        .flatten()
        .collect();

    assert!(labels.len() <= 45, "{}", labels.len());
    for area in ["payment", "invoice", "subscription", "wallet", "usage"] {
        assert!(labels.iter().any(|label| label.event_type == area), "{area}");
    }
}
