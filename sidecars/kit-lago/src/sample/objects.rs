//! Everything that is not an amount: customers, subscriptions, the catalogue, errors, alerts.

use super::Facts;
use super::billing::{
    credit_note, fee, invoice, payment, payment_receipt, payment_request, quote_to_cash, wallet, wallet_transaction,
};
use super::json::{Object, string};

/// The payload of a type.
pub(super) fn object(facts: &Facts<'_>, object_type: &str, webhook_type: &str) -> String {
    match object_type {
        "invoice" => invoice(facts, webhook_type),
        "fee" => fee(facts, 0),
        "credit_note" => credit_note(facts),
        "payment" => payment(facts, webhook_type),
        "payment_receipt" => payment_receipt(facts),
        "payment_request" => payment_request(facts, webhook_type),
        "wallet" => wallet(facts, webhook_type),
        "wallet_transaction" => wallet_transaction(facts, webhook_type),
        "order" | "order_form" | "quote" => quote_to_cash(facts, object_type, webhook_type),
        "customer" => customer(facts),
        "subscription" => subscription(facts, webhook_type),
        "plan" => plan(facts),
        "billable_metric" => billable_metric(facts),
        "feature" => feature(facts),
        "triggered_alert" => triggered_alert(facts),
        "dunning_campaign" => dunning_campaign(facts),
        "event_error" => event_error(facts),
        "events_errors" => events_errors(facts),
        "payment_dispute_lost" => payment_dispute_lost(facts),
        "payment_provider_customer_checkout_url" => checkout_url(facts),
        "payment_provider_error" | "provider_error" => provider_error(facts),
        error if error.ends_with("_error") => object_error(facts, error),
        _ => novelty(facts),
    }
}

/// A customer record, the same for every sample of a customer but for `updated_at`.
pub(super) fn customer(facts: &Facts<'_>) -> String {
    let mut billing = Object::new();
    billing
        .null("invoice_grace_period")
        .text("payment_provider", "stripe")
        .text("payment_provider_code", "stripe_eu")
        .text("document_locale", "fr");
    let metadata = Object::new().text("key", "segment").text("value", "R&D <internal>").finish();
    Object::new()
        .text("lago_id", &facts.customer_uuid("customer"))
        .text("external_id", &facts.shape.customer)
        .text("name", facts.company())
        .text("slug", "CAF-0001")
        .text("email", "billing+eu@example.test")
        .text("country", "FR")
        .text("currency", "USD")
        .text("applicable_timezone", "Europe/Paris")
        .int("net_payment_term", 0)
        .text("finalize_zero_amount_invoice", "inherit")
        .raw("billing_configuration", &billing.finish())
        .list("metadata", &[metadata])
        .text("created_at", "2024-01-15T09:30:00Z")
        .text("updated_at", &facts.moment())
        .finish()
}

/// The customer's subscription as an invoice lists it.
pub(super) fn listed_subscription(facts: &Facts<'_>) -> String {
    subscription_head(facts, "active").finish()
}

fn subscription_head(facts: &Facts<'_>, status: &str) -> Object {
    let mut subscription = Object::new();
    subscription
        .text("lago_id", &facts.customer_uuid("subscription"))
        .text("external_id", &facts.subscription())
        .text("external_customer_id", &facts.shape.customer)
        .text("name", "Growth & Scale")
        .text("plan_code", "growth")
        .text("status", status)
        .text("billing_time", "calendar")
        .text("started_at", "2024-01-15T09:30:00Z");
    subscription
}

/// The customer's subscription, with its plan and customer.
fn subscription(facts: &Facts<'_>, webhook_type: &str) -> String {
    let at = |wanted: &str| (webhook_type == wanted).then(|| facts.moment());
    let status = match webhook_type {
        "subscription.terminated" => "terminated",
        "subscription.canceled" => "canceled",
        "subscription.incomplete" => "incomplete",
        _ => "active",
    };
    let mut subscription = subscription_head(facts, status);
    subscription
        .text("lago_customer_id", &facts.customer_uuid("customer"))
        .text("subscription_at", "2024-01-15T09:30:00Z")
        .maybe("trial_ended_at", at("subscription.trial_ended").as_deref())
        .null("ending_at")
        .maybe("terminated_at", at("subscription.terminated").as_deref())
        .maybe("canceled_at", at("subscription.canceled").as_deref())
        .null("previous_plan_code")
        .null("next_plan_code")
        .null("downgrade_plan_date")
        .text("current_billing_period_started_at", "2024-11-01T00:00:00Z")
        .text("current_billing_period_ending_at", &facts.moment())
        .raw("plan", &plan(facts))
        .raw("customer", &customer(facts));
    if webhook_type == "subscription.usage_threshold_reached" {
        let mut threshold = Object::new();
        threshold.int("amount_cents", 10_000).flag("recurring", false).text("threshold_display_name", "First 100 $");
        subscription.raw("usage_threshold", &threshold.finish());
    }
    subscription.finish()
}

pub(super) fn plan(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.customer_uuid("plan"))
        .text("name", "Growth <monthly>")
        .text("code", "growth")
        .text("interval", "monthly")
        .int("amount_cents", facts.cents())
        .text("amount_currency", "USD")
        .raw("trial_period", "0.0")
        .flag("pay_in_advance", true)
        .text("created_at", &facts.moment())
        .finish()
}

fn billable_metric(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.uuid("billable_metric"))
        .text("name", "AI requests & tokens")
        .text("code", "ai_requests")
        .text("aggregation_type", "sum_agg")
        .text("field_name", "requests")
        .flag("recurring", false)
        .raw("filters", "[]")
        .text("created_at", &facts.moment())
        .finish()
}

fn feature(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.uuid("feature"))
        .text("code", "seats")
        .text("name", "Seats & roles")
        .raw("privileges", r#"[{"code":"max","name":"Maximum","value_type":"integer","config":{}}]"#)
        .text("created_at", &facts.moment())
        .finish()
}

fn triggered_alert(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.uuid("triggered_alert"))
        .text("lago_alert_id", &facts.customer_uuid("alert"))
        .text("external_subscription_id", &facts.subscription())
        .text("external_customer_id", &facts.shape.customer)
        .null("lago_wallet_id")
        .text("billable_metric_code", "ai_requests")
        .text("alert_name", "Requests > 80 %")
        .text("alert_code", "requests_80")
        .text("alert_type", "billable_metric_current_usage_units")
        .text("current_value", "812.5")
        .text("previous_value", "799.0")
        .raw("crossed_thresholds", r#"[{"code":"warn","value":"800.0","recurring":false}]"#)
        .text("triggered_at", &facts.moment())
        .finish()
}

fn dunning_campaign(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.uuid("dunning_campaign"))
        .text("external_customer_id", &facts.shape.customer)
        .text("dunning_campaign_code", "three_reminders")
        .int("overdue_balance_cents", facts.cents())
        .text("overdue_balance_currency", "USD")
        .finish()
}

/// The event is an object; the message is a string that holds JSON.
fn event_error(facts: &Facts<'_>) -> String {
    let event = Object::new()
        .text("lago_id", &facts.uuid("event"))
        .text("transaction_id", &facts.uuid("transaction"))
        .text("code", "ai_requests")
        .text("timestamp", &facts.moment())
        .text("external_subscription_id", &facts.subscription())
        .raw("properties", r#"{"requests":"12","model":"a & b"}"#)
        .finish();
    Object::new()
        .int("status", 422)
        .text("error", "Unprocessable Entity")
        .text("message", r#"{"transaction_id":["value_already_exist"]}"#)
        .raw("event", &event)
        .finish()
}

fn events_errors(facts: &Facts<'_>) -> String {
    Object::new()
        .list("invalid_code", &[string(&facts.uuid("transaction"))])
        .raw("missing_aggregation_property", "[]")
        .raw("missing_group_key", "null")
        .raw("invalid_filter_values", "[]")
        .finish()
}

fn payment_dispute_lost(facts: &Facts<'_>) -> String {
    Object::new().raw("invoice", &invoice(facts, "invoice.generated")).raw("provider_error", &psp_error(facts)).finish()
}

fn checkout_url(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_customer_id", &facts.customer_uuid("customer"))
        .text("external_customer_id", &facts.shape.customer)
        .text("payment_provider", "stripe")
        .text("payment_provider_code", "stripe_eu")
        .text("checkout_url", &format!("https://psp.example/c?id={}&x=<1>", facts.shape.seq))
        .finish()
}

/// Errors that concern the installation, not a customer.
fn provider_error(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_payment_provider_id", &facts.uuid("payment_provider"))
        .text("payment_provider_code", "stripe_eu")
        .text("payment_provider_name", "Stripe & EU")
        .text("source", "stripe")
        .text("action", "payment_provider.register_webhook")
        .raw("provider_error", &psp_error(facts))
        .finish()
}

/// Errors about one object, which they name by its id instead of having one of their own.
fn object_error(facts: &Facts<'_>, object_type: &str) -> String {
    let mut error = Object::new();
    if object_type.contains("payment_request") {
        error
            .text("lago_payment_request_id", &facts.uuid("payment_request"))
            .list("lago_invoice_ids", &[string(&facts.uuid("invoice"))]);
    } else if object_type.contains("invoice") {
        error.text("lago_invoice_id", &facts.uuid("invoice"));
    } else if object_type.contains("wallet_transaction") {
        error.text("lago_wallet_transaction_id", &facts.uuid("wallet_transaction"));
    } else if object_type.contains("credit_note") {
        error.text("lago_credit_note_id", &facts.uuid("credit_note"));
    } else if object_type.contains("fee") {
        error.text("tax_provider_code", "anrok").text("lago_charge_id", &facts.uuid("charge"));
    } else {
        error.text("lago_customer_id", &facts.customer_uuid("customer"));
    }
    error
        .text("external_customer_id", &facts.shape.customer)
        .text("provider_customer_id", "cus_1a2b3c")
        .text("payment_provider", "stripe")
        .text("payment_provider_code", "stripe_eu")
        .raw("provider_error", &psp_error(facts))
        .finish()
}

fn psp_error(facts: &Facts<'_>) -> String {
    Object::new()
        .text("message", "Your card was declined & not charged")
        .text("code", "card_declined")
        .text("request_id", &facts.uuid("request"))
        .finish()
}

fn novelty(facts: &Facts<'_>) -> String {
    Object::new()
        .text("lago_id", &facts.uuid("novelty"))
        .text("external_customer_id", &facts.shape.customer)
        .text("created_at", &facts.moment())
        .finish()
}
