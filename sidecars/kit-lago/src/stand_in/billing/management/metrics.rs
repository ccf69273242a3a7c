//! Billable metrics: kept in the catalogue, where usage is counted by them.

use serde_json::Value;

use super::params::{Params, VALUE_IS_INVALID, Wrong};
use super::{Desk, Kind, Object, Outcome, not_found, refused, text};
use crate::stand_in::billing::answer::Answer;
use crate::stand_in::billing::catalogue::{AggregationType, Metric};

/// What may still be changed when a plan charges the metric.
const EVER: [&str; 2] = ["name", "description"];
const FREE: [&str; 9] = [
    "code",
    "aggregation_type",
    "field_name",
    "recurring",
    "weighted_interval",
    "expression",
    "rounding_function",
    "rounding_precision",
    "filters",
];

impl Desk<'_> {
    pub(super) fn create_metric(&mut self, params: &Params) -> Outcome {
        let mut fields = Object::new();
        params.copy(&EVER, &mut fields);
        params.copy(&FREE, &mut fields);
        let is_taken = self.catalogue.metrics.iter().any(|metric| Some(metric.code.as_str()) == params.text("code"));
        let metric = judged(&fields, None, is_taken)?;
        self.catalogue.metrics.push(metric.clone());
        Ok(self.show_metric(&metric))
    }

    /// Source: getlago/lago-api `app/services/billable_metrics/update_service.rb`: only name and description once a plan
    /// charges it; the rest is passed over in silence.
    pub(super) fn update_metric(&mut self, code: &str, params: &Params) -> Outcome {
        let Some(at) = self.catalogue.metrics.iter().position(|metric| metric.code == code) else {
            return not_found(Kind::BillableMetric);
        };
        let old = self.catalogue.metrics[at].clone();
        let Value::Object(mut fields) = old.to_json() else { return refused(Answer::bare(500)) };
        params.copy(&EVER, &mut fields);
        if !self.is_charged(&old) {
            params.copy(&FREE, &mut fields);
        }
        let new_code = text(&fields, "code").filter(|new| *new != old.code);
        let is_taken = new_code.is_some_and(|new| self.catalogue.metrics.iter().any(|metric| metric.code == new));
        let metric = judged(&fields, Some(&old), is_taken)?;
        self.catalogue.metrics[at] = metric.clone();
        Ok(self.show_metric(&metric))
    }

    /// Its charges go with it.
    pub(super) fn delete_metric(&mut self, code: &str) {
        let Some(at) = self.catalogue.metrics.iter().position(|metric| metric.code == code) else { return };
        let id = self.catalogue.metrics.remove(at).lago_id.to_string();
        for plan in &mut self.managed.plans {
            if let Some(charges) = plan.get_mut("charges").and_then(Value::as_array_mut) {
                charges.retain(|charge| charge["lago_billable_metric_id"] != id.as_str());
            }
        }
    }

    pub(super) fn show_metric(&self, metric: &Metric) -> Value {
        let mut shown = metric.to_json();
        let plans = self.managed.plans.iter().filter(|plan| charges_metric(plan, metric)).count();
        shown["plans_count"] = plans.into();
        shown
    }

    fn is_charged(&self, metric: &Metric) -> bool {
        self.managed.plans.iter().any(|plan| charges_metric(plan, metric))
    }
}

fn charges_metric(plan: &Object, metric: &Metric) -> bool {
    let id = metric.lago_id.to_string();
    let charges = plan.get("charges").and_then(Value::as_array);
    charges.is_some_and(|charges| charges.iter().any(|charge| charge["lago_billable_metric_id"] == id.as_str()))
}

/// The metric of these fields.
fn judged(fields: &Object, old: Option<&Metric>, is_taken: bool) -> Result<Metric, Box<Answer>> {
    let mut wrong = Wrong::default();
    wrong.mandatory(fields, &["name", "code"]);
    wrong.taken("code", is_taken);
    let aggregation = text(fields, "aggregation_type").and_then(AggregationType::of);
    let Some(aggregation_type) = aggregation else {
        wrong.add("aggregation_type", VALUE_IS_INVALID);
        wrong.done()?;
        return refused(Answer::bare(500));
    };
    if !matches!(aggregation_type, AggregationType::Count | AggregationType::Custom) {
        wrong.mandatory(fields, &["field_name"]);
    }
    let recurring = fields.get("recurring").and_then(Value::as_bool).unwrap_or_default();
    let cannot_recur = [AggregationType::Count, AggregationType::Max, AggregationType::Latest];
    if recurring && cannot_recur.contains(&aggregation_type) {
        wrong.add("recurring", "not_compatible_with_aggregation_type");
    }
    if aggregation_type == AggregationType::WeightedSum && text(fields, "weighted_interval") != Some("seconds") {
        wrong.add("weighted_interval", VALUE_IS_INVALID);
    }
    if text(fields, "rounding_function").is_some_and(|name| !["round", "ceil", "floor"].contains(&name)) {
        wrong.add("rounding_function", VALUE_IS_INVALID);
    }
    wrong.done()?;
    let owned = |name: &str| text(fields, name).map(str::to_owned);
    let code = owned("code").unwrap_or_default();
    let blank = Metric::new(&code, aggregation_type, text(fields, "field_name"));
    let (lago_id, created_at) = old.map_or((blank.lago_id, blank.created_at), |old| (old.lago_id, old.created_at));
    Ok(Metric {
        lago_id,
        created_at,
        name: owned("name").unwrap_or_default(),
        description: owned("description"),
        recurring,
        expression: owned("expression"),
        rounding_function: owned("rounding_function"),
        rounding_precision: fields.get("rounding_precision").and_then(Value::as_i64),
        filters: fields.get("filters").and_then(Value::as_array).cloned().unwrap_or_default(),
        ..blank
    })
}
