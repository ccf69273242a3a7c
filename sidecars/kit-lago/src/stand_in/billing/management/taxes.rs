//! Taxes, and the add-ons that they are put on.

use serde_json::{Value, json};

use super::params::{Params, Wrong};
use super::{Desk, Kind, Object, Outcome, new_object, not_found, refused, text};
use crate::stand_in::billing::answer::Answer;

const TAX: [&str; 5] = ["name", "code", "rate", "description", "applied_to_organization"];
const ADD_ON: [&str; 6] = ["name", "invoice_display_name", "code", "description", "amount_cents", "amount_currency"];

impl Desk<'_> {
    pub(super) fn create_tax(&mut self, params: &Params) -> Outcome {
        let mut tax = new_object();
        params.copy_all(&TAX, &mut tax);
        tax.insert("applied_to_organization".to_owned(), json!(params.bool("applied_to_organization") == Some(true)));
        for count in ["add_ons_count", "customers_count", "plans_count", "charges_count", "commitments_count"] {
            tax.insert(count.to_owned(), json!(0));
        }
        judge_tax(&mut tax, self.is_taken(Kind::Tax, params.text("code")))?;
        self.managed.taxes.push(tax);
        Ok(self.show_tax(self.managed.taxes.len() - 1))
    }

    pub(super) fn update_tax(&mut self, at: usize, params: &Params) -> Outcome {
        let mut tax = self.managed.taxes[at].clone();
        params.copy(&TAX, &mut tax);
        let is_renamed = params.text("code") != text(&self.managed.taxes[at], "code");
        judge_tax(&mut tax, is_renamed && self.is_taken(Kind::Tax, params.text("code")))?;
        self.managed.taxes[at] = tax;
        Ok(self.show_tax(at))
    }

    /// With how many things have it.
    ///
    /// Source: getlago/lago-api `app/serializers/v1/tax_serializer.rb` at v1.16.0.
    pub(super) fn show_tax(&self, at: usize) -> Value {
        let mut tax = self.managed.taxes[at].clone();
        let code = tax.get("code").cloned().unwrap_or_default();
        let has_it = |object: &Value| object["taxes"].as_array().is_some_and(|taxes| taxes.contains(&code));
        let of = |objects: &[Object]| objects.iter().filter(|one| has_it(&json!(one))).count();
        let charges = self.managed.plans.iter().filter_map(|plan| plan.get("charges")?.as_array()).flatten();
        let counts = [
            ("add_ons_count", of(&self.managed.add_ons)),
            ("plans_count", of(&self.managed.plans)),
            ("charges_count", charges.filter(|charge| has_it(charge)).count()),
        ];
        tax.extend(counts.map(|(name, count)| (name.to_owned(), json!(count))));
        Value::Object(tax)
    }

    pub(super) fn create_add_on(&mut self, params: &Params) -> Outcome {
        let mut add_on = new_object();
        params.copy_all(&ADD_ON, &mut add_on);
        judge_add_on(&add_on, self.is_taken(Kind::AddOn, params.text("code")))?;
        self.put_taxes(params, &mut add_on)?;
        self.managed.add_ons.push(add_on);
        Ok(self.show_add_on(self.managed.add_ons.len() - 1))
    }

    pub(super) fn update_add_on(&mut self, at: usize, params: &Params) -> Outcome {
        let mut add_on = self.managed.add_ons[at].clone();
        params.copy(&ADD_ON, &mut add_on);
        let is_renamed = params.text("code") != text(&self.managed.add_ons[at], "code");
        judge_add_on(&add_on, is_renamed && self.is_taken(Kind::AddOn, params.text("code")))?;
        self.put_taxes(params, &mut add_on)?;
        self.managed.add_ons[at] = add_on;
        Ok(self.show_add_on(at))
    }

    pub(super) fn show_add_on(&mut self, at: usize) -> Value {
        self.with_taxes(self.managed.add_ons[at].clone())
    }

    /// Notes the taxes of something as `taxes`, a list of codes; those that were there stay where none are named.
    pub(super) fn put_taxes(&mut self, params: &Params, object: &mut Object) -> Result<(), Box<Answer>> {
        let Some(codes) = params.texts("tax_codes") else {
            object.entry("taxes".to_owned()).or_insert_with(|| json!([]));
            return Ok(());
        };
        if codes.iter().any(|code| self.position(Kind::Tax, code).is_none()) {
            return not_found(Kind::Tax);
        }
        object.insert("taxes".to_owned(), json!(codes));
        Ok(())
    }

    /// The object with its taxes themselves in the place of their codes. Deleted ones are gone.
    pub(super) fn with_taxes(&self, mut object: Object) -> Value {
        let codes: Vec<Value> = object.get("taxes").and_then(Value::as_array).cloned().unwrap_or_default();
        let taxes: Vec<_> =
            self.managed.taxes.iter().filter(|tax| codes.iter().any(|code| tax.get("code") == Some(code))).collect();
        object.insert("taxes".to_owned(), json!(taxes));
        Value::Object(object)
    }
}

fn judge_tax(tax: &mut Object, is_taken: bool) -> Result<(), Box<Answer>> {
    let mut wrong = Wrong::default();
    wrong.mandatory(tax, &["name", "code", "rate"]);
    wrong.taken("code", is_taken);
    wrong.done()?;
    // A column of numbers, that comes back as a float.
    let rate = match tax.get("rate") {
        Some(Value::Number(rate)) => rate.as_f64(),
        Some(Value::String(rate)) => rate.parse().ok(),
        _ => None,
    };
    let Some(rate) = rate else { return refused(Answer::invalid(json!({ "rate": ["value_is_invalid"] }))) };
    tax.insert("rate".to_owned(), json!(rate));
    Ok(())
}

fn judge_add_on(add_on: &Object, is_taken: bool) -> Result<(), Box<Answer>> {
    let mut wrong = Wrong::default();
    wrong.mandatory(add_on, &["name", "code"]);
    wrong.cents(add_on, "amount_cents", 0);
    wrong.currency(add_on, "amount_currency");
    wrong.taken("code", is_taken);
    wrong.done()
}
