//! Coupons.
//!
//! Source: getlago/lago-api `app/services/coupons/` at v1.16.0.

use serde_json::{Value, json};

use super::params::{Params, Wrong};
use super::{Answer, Desk, Kind, Object, Outcome, new_object, refused, text};

const EVER: [&str; 3] = ["name", "expiration", "expiration_at"];
/// What may no longer be changed once a customer has it.
const FREE: [&str; 8] = [
    "code",
    "coupon_type",
    "amount_cents",
    "amount_currency",
    "percentage_rate",
    "frequency",
    "frequency_duration",
    "reusable",
];

impl Desk<'_> {
    pub(super) fn create_coupon(&mut self, params: &Params) -> Outcome {
        let mut coupon = new_object();
        params.copy_all(&EVER, &mut coupon);
        params.copy_all(&FREE, &mut coupon);
        params.copy_all(&["description"], &mut coupon);
        coupon.insert("reusable".to_owned(), json!(params.bool("reusable").unwrap_or(true)));
        coupon.insert("terminated_at".to_owned(), Value::Null);
        judge(&mut coupon, self.is_taken(Kind::Coupon, params.text("code")))?;
        self.limit(params, &mut coupon)?;
        self.managed.coupons.push(coupon.clone());
        Ok(Value::Object(coupon))
    }

    pub(super) fn update_coupon(&mut self, at: usize, params: &Params) -> Outcome {
        let mut coupon = self.managed.coupons[at].clone();
        params.copy(&EVER, &mut coupon);
        params.copy(&["description"], &mut coupon);
        let code = text(&coupon, "code").unwrap_or_default().to_owned();
        if !self.managed.applied_coupons.contains(&code) {
            params.copy(&FREE, &mut coupon);
            self.limit(params, &mut coupon)?;
        }
        let is_renamed = text(&coupon, "code") != Some(code.as_str());
        let is_taken = is_renamed && self.is_taken(Kind::Coupon, params.text("code"));
        judge(&mut coupon, is_taken)?;
        self.managed.coupons[at] = coupon.clone();
        Ok(Value::Object(coupon))
    }

    fn limit(&mut self, params: &Params, coupon: &mut Object) -> Result<(), Box<Answer>> {
        let limits = params.get("applies_to").and_then(Value::as_object).cloned().map(Params);
        let codes = |name: &str| limits.as_ref().and_then(|limits| limits.texts(name));
        let (plans, metrics) = (codes("plan_codes"), codes("billable_metric_codes"));
        if plans.iter().flatten().any(|code| self.position(Kind::Plan, code).is_none()) {
            return refused(Answer::not_found("plans_not_found"));
        }
        let known = |code: &String| self.catalogue.metrics.iter().any(|metric| metric.code == *code);
        if !metrics.iter().flatten().all(known) {
            return refused(Answer::not_found("billable_metrics_not_found"));
        }
        for (name, limited, codes) in
            [("plan_codes", "limited_plans", plans), ("billable_metric_codes", "limited_billable_metrics", metrics)]
        {
            if coupon.contains_key(name) && codes.is_none() {
                continue;
            }
            let codes = codes.unwrap_or_default();
            coupon.insert(limited.to_owned(), json!(!codes.is_empty()));
            coupon.insert(name.to_owned(), json!(codes));
        }
        Ok(())
    }
}

fn judge(coupon: &mut Object, is_taken: bool) -> Result<(), Box<Answer>> {
    let mut wrong = Wrong::default();
    wrong.mandatory(coupon, &["name"]);
    wrong.one_of(coupon, "expiration", &["no_expiration", "time_limit"]);
    wrong.one_of(coupon, "coupon_type", &["fixed_amount", "percentage"]);
    wrong.one_of(coupon, "frequency", &["once", "recurring", "forever"]);
    match text(coupon, "coupon_type") {
        Some("fixed_amount") => {
            wrong.cents(coupon, "amount_cents", 1);
            wrong.currency(coupon, "amount_currency");
        }
        Some("percentage") => wrong.mandatory(coupon, &["percentage_rate"]),
        _ => {}
    }
    if text(coupon, "expiration") == Some("time_limit") {
        let at = text(coupon, "expiration_at").and_then(|at| at.parse::<jiff::Timestamp>().ok());
        if at.is_none_or(|at| at <= jiff::Timestamp::now()) {
            wrong.add("expiration_at", "invalid_date");
        }
    }
    wrong.taken("code", is_taken);
    wrong.done()?;
    // Decimals come back as texts.
    if let Some(rate) = coupon.get("percentage_rate").filter(|rate| rate.is_number()) {
        let rate = rate.to_string();
        let rate = if rate.contains('.') { rate } else { format!("{rate}.0") };
        coupon.insert("percentage_rate".to_owned(), json!(rate));
    }
    Ok(())
}
