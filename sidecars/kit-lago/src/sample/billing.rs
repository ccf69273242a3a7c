//! The objects that money hangs on: invoices, fees, credit notes, payments, wallets.

use super::json::Object;
use super::objects::{customer, listed_subscription, plan};
use super::{Facts, uuid};

const CURRENCY: &str = "USD";

/// An invoice with the parts its type carries.
///
/// Source: getlago/lago-api `app/services/webhooks/invoices/` at v1.16.0: created, drafted and
/// voided carry everything, generated only the customer.
pub(super) fn invoice(facts: &Facts<'_>, webhook_type: &str) -> String {
    let suffix = webhook_type.strip_prefix("invoice.").unwrap_or(webhook_type);
    let status = match suffix {
        "drafted" | "ready_to_finalize" | "deleted" => "draft",
        "voided" => "voided",
        _ => "finalized",
    };
    let invoice_type = match suffix {
        "one_off_created" => "one_off",
        "paid_credit_added" => "credit",
        "add_on_added" => "add_on",
        _ => "subscription",
    };
    let payment_status = match suffix {
        "payment_status_updated" => facts.payment_status(),
        _ => "pending",
    };
    let mut invoice = invoice_head(facts, status, payment_status, invoice_type);
    invoice.flag("payment_overdue", suffix == "payment_overdue");
    if suffix == "voided" {
        invoice.text("voided_at", &facts.moment());
    }
    invoice.text("created_at", &facts.moment()).text("updated_at", &facts.moment());
    invoice.raw("customer", &customer(facts));
    if suffix != "generated" {
        invoice.list("fees", &fees(facts));
        if suffix != "payment_status_updated" {
            invoice.list("applied_taxes", &[applied_tax(facts)]);
        }
    }
    if matches!(suffix, "created" | "drafted" | "voided" | "ready_to_finalize") {
        invoice.list("subscriptions", &[listed_subscription(facts)]);
        invoice.raw("credits", "[]");
    }
    invoice.finish()
}

fn invoice_head(facts: &Facts<'_>, status: &str, payment_status: &str, invoice_type: &str) -> Object {
    let cents = facts.cents();
    let seq = i64::try_from(facts.shape.seq).unwrap_or(i64::MAX);
    let mut invoice = Object::new();
    invoice
        .text("lago_id", &facts.uuid("invoice"))
        .text("number", &format!("CAF-{seq:04}-001"))
        .int("sequential_id", seq)
        .text("issuing_date", &facts.day())
        .text("payment_due_date", &facts.day())
        .int("net_payment_term", 0)
        .text("invoice_type", invoice_type)
        .text("status", status)
        .text("payment_status", payment_status)
        .null("payment_dispute_lost_at")
        .text("currency", CURRENCY)
        .int("fees_amount_cents", cents)
        .int("taxes_amount_cents", cents / 5)
        .int("coupons_amount_cents", 0)
        .int("credit_notes_amount_cents", 0)
        .int("progressive_billing_credit_amount_cents", 0)
        .int("prepaid_credit_amount_cents", 0)
        .int("sub_total_excluding_taxes_amount_cents", cents)
        .int("sub_total_including_taxes_amount_cents", cents + cents / 5)
        .int("total_amount_cents", cents + cents / 5)
        .text("file_url", "https://lago.example/rails/active_storage/blobs/a?b=1&c=<2>")
        .int("version_number", 4);
    invoice
}

fn fees(facts: &Facts<'_>) -> Vec<String> {
    (0..facts.shape.fees).map(|index| fee(facts, index)).collect()
}

/// One fee; `index` tells the fees of an invoice apart.
pub(super) fn fee(facts: &Facts<'_>, index: usize) -> String {
    let number = index.to_string();
    let cents = i64::try_from(index % 1000).unwrap_or(0);
    let mut item = Object::new();
    item.text("type", "charge")
        .text("code", "ai_requests")
        .text("name", "AI requests <= 1000 & more")
        .text("item_type", "BillableMetric")
        .raw("grouped_by", "{}");
    Object::new()
        .text("lago_id", &uuid(&["fee", &facts.uuid("fee"), &number]))
        .text("lago_charge_id", &facts.customer_uuid("charge"))
        .text("lago_invoice_id", &facts.uuid("invoice"))
        .text("external_subscription_id", &facts.subscription())
        .text("external_customer_id", &facts.shape.customer)
        .raw("item", &item.finish())
        .flag("pay_in_advance", false)
        .flag("invoiceable", true)
        .int("amount_cents", cents)
        .text("amount_currency", CURRENCY)
        .raw("precise_amount", &format!("{}.{:02}", cents / 100, cents % 100))
        .int("total_amount_cents", cents + cents / 5)
        .int("taxes_amount_cents", cents / 5)
        .raw("taxes_rate", "20.0")
        .text("units", &format!("{index}.5"))
        .int("events_count", 3)
        .text("precise_unit_amount", "0.0125")
        .text("payment_status", "pending")
        .text("from_date", "2024-11-01T00:00:00+00:00")
        .text("to_date", "2024-11-30T23:59:59+00:00")
        .null("event_transaction_id")
        .finish()
}

fn applied_tax(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.uuid("applied_tax"))
        .text("tax_name", "VAT")
        .text("tax_code", "vat_20")
        .raw("tax_rate", "20.0")
        .int("amount_cents", facts.cents() / 5)
        .text("amount_currency", CURRENCY)
        .finish()
}

pub(super) fn credit_note(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.uuid("credit_note"))
        .text("number", "CAF-0001-001-CN001")
        .text("lago_invoice_id", &facts.uuid("invoice"))
        .text("invoice_number", "CAF-0001-001")
        .text("issuing_date", &facts.day())
        .text("credit_status", "available")
        .text("refund_status", "pending")
        .text("reason", "product_unsatisfactory")
        .text("currency", CURRENCY)
        .int("total_amount_cents", facts.cents())
        .int("taxes_amount_cents", facts.cents() / 5)
        .int("balance_amount_cents", facts.cents())
        .int("credit_amount_cents", facts.cents())
        .int("refund_amount_cents", 0)
        .null("file_url")
        .raw("items", "[]")
        .raw("customer", &customer(facts))
        .finish()
}

pub(super) fn payment(facts: &Facts<'_>, webhook_type: &str) -> String {
    let (status, action) = match webhook_type {
        "payment.succeeded" => ("succeeded", "{}"),
        _ => ("pending", r#"{"url":"https://psp.example/3ds?a=1&b=2"}"#),
    };
    Object::new()
        .text("lago_id", &facts.uuid("payment"))
        .text("lago_customer_id", &facts.customer_uuid("customer"))
        .text("external_customer_id", &facts.shape.customer)
        .list("invoice_ids", &[super::json::string(&facts.uuid("invoice"))])
        .int("amount_cents", facts.cents())
        .text("amount_currency", CURRENCY)
        .text("payment_status", status)
        .text("type", "provider")
        .text("payment_provider_code", "stripe_eu")
        .raw("next_action", action)
        .text("created_at", &facts.moment())
        .finish()
}

pub(super) fn payment_receipt(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.uuid("payment_receipt"))
        .text("number", "CAF-RCPT-0001")
        .raw("payment", &payment(facts, "payment.succeeded"))
        .text("created_at", &facts.moment())
        .raw("customer", &customer(facts))
        .finish()
}

pub(super) fn payment_request(facts: &Facts<'_>, webhook_type: &str) -> String {
    let status = match webhook_type {
        "payment_request.payment_status_updated" => facts.payment_status(),
        _ => "pending",
    };
    let invoice = invoice_head(facts, "finalized", "failed", "subscription").finish();
    Object::new()
        .text("lago_id", &facts.uuid("payment_request"))
        .text("email", "billing@example.test")
        .int("amount_cents", facts.cents())
        .text("amount_currency", CURRENCY)
        .text("payment_status", status)
        .text("created_at", &facts.moment())
        .raw("customer", &customer(facts))
        .list("invoices", &[invoice])
        .finish()
}

pub(super) fn wallet(facts: &Facts<'_>, webhook_type: &str) -> String {
    let terminated = (webhook_type == "wallet.terminated").then(|| facts.moment());
    let cents = match webhook_type {
        "wallet.depleted_ongoing_balance" => -12,
        _ => facts.cents(),
    };
    Object::new()
        .text("lago_id", &facts.customer_uuid("wallet"))
        .text("lago_customer_id", &facts.customer_uuid("customer"))
        .text("external_customer_id", &facts.shape.customer)
        .text("status", if terminated.is_some() { "terminated" } else { "active" })
        .text("currency", CURRENCY)
        .text("name", "Prepaid & <ready>")
        .text("rate_amount", "1.0")
        .text("credits_balance", "120.5")
        .text("credits_ongoing_balance", &format!("{}.{:02}", cents / 100, (cents % 100).abs()))
        .text("credits_ongoing_usage_balance", "3.25")
        .int("balance_cents", 12_050)
        .int("ongoing_balance_cents", cents)
        .int("ongoing_usage_balance_cents", 325)
        .text("consumed_credits", "42.0")
        .null("expiration_at")
        .text("last_balance_sync_at", &facts.moment())
        .maybe("terminated_at", terminated.as_deref())
        .finish()
}

pub(super) fn wallet_transaction(facts: &Facts<'_>, webhook_type: &str) -> String {
    let settled = webhook_type == "wallet_transaction.updated";
    Object::new()
        .text("lago_id", &facts.uuid("wallet_transaction"))
        .text("lago_wallet_id", &facts.customer_uuid("wallet"))
        .text("status", if settled { "settled" } else { "pending" })
        .text("source", "manual")
        .text("transaction_status", "purchased")
        .text("transaction_type", "inbound")
        .text("amount", "25.0")
        .text("credit_amount", "25.0")
        .maybe("settled_at", settled.then(|| facts.moment()).as_deref())
        .text("created_at", &facts.moment())
        .raw("metadata", "[]")
        .raw("wallet", &wallet(facts, "wallet.updated"))
        .finish()
}

pub(super) fn quote_to_cash(facts: &Facts<'_>, object_type: &str, webhook_type: &str) -> String {
    let status = webhook_type.rsplit('.').next().unwrap_or(webhook_type);
    Object::new()
        .text("lago_id", &facts.uuid(object_type))
        .text("external_customer_id", &facts.shape.customer)
        .text("number", &format!("{}-0001", object_type.to_uppercase()))
        .text("status", status)
        .int("amount_cents", facts.cents())
        .text("amount_currency", CURRENCY)
        .raw("plan", &plan(facts))
        .text("created_at", &facts.moment())
        .finish()
}
