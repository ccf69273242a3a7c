//! Features with their privileges, and which plan grants them: from v1.32.0 on.
//!
//! Source: getlago/lago-api `app/services/entitlement/` at the head of 2026-08-21. Features have no `lago_id`.

use http::Method;
use serde_json::{Value, json};

use super::params::{Params, VALUE_IS_INVALID, Wrong};
use super::{Answer, Desk, Kind, Object, Outcome, new_object, refused, text};

const VALUE_TYPES: [&str; 4] = ["integer", "string", "boolean", "select"];

/// What a request about a plan's entitlements wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::stand_in::billing) enum Entitlements {
    List,
    /// The others go.
    Replace,
    /// The others stay.
    Merge,
    Delete {
        feature: String,
    },
    DeletePrivilege {
        feature: String,
        privilege: String,
    },
}

impl Entitlements {
    pub(super) fn of(method: &Method, rest: &[&str]) -> Option<Self> {
        match (method.as_str(), rest) {
            ("GET", []) => Some(Self::List),
            ("POST", []) => Some(Self::Replace),
            ("PATCH", []) => Some(Self::Merge),
            ("DELETE", [feature]) => Some(Self::Delete { feature: (*feature).to_owned() }),
            ("DELETE", [feature, "privileges", privilege]) => {
                Some(Self::DeletePrivilege { feature: (*feature).to_owned(), privilege: (*privilege).to_owned() })
            }
            _ => None,
        }
    }

    pub(super) fn is_writing(&self) -> bool {
        *self != Self::List
    }
}

impl Desk<'_> {
    pub(super) fn create_feature(&mut self, params: &Params) -> Outcome {
        let mut feature = new_object();
        feature.remove("lago_id");
        params.copy_all(&["code", "name", "description"], &mut feature);
        let mut wrong = Wrong::default();
        wrong.mandatory(&feature, &["code"]);
        wrong.taken("code", self.is_taken(Kind::Feature, params.text("code")));
        wrong.done()?;
        feature.insert("privileges".to_owned(), json!([]));
        add_privileges(&mut feature, params)?;
        self.managed.features.push(feature.clone());
        Ok(Value::Object(feature))
    }

    /// Privileges are added and renamed; the type of a value stays, and so does every option of a selection.
    pub(super) fn update_feature(&mut self, at: usize, params: &Params) -> Outcome {
        let mut feature = self.managed.features[at].clone();
        params.copy(&["name", "description"], &mut feature);
        add_privileges(&mut feature, params)?;
        self.managed.features[at] = feature.clone();
        Ok(Value::Object(feature))
    }

    pub(super) fn entitlements(&mut self, plan: &str, what: &Entitlements, body: &[u8]) -> Answer {
        let Some(at) = self.position(Kind::Plan, plan) else { return Answer::not_found("plan_not_found") };
        let missing = Answer::not_found("entitlement_not_found");
        let mut granted =
            self.managed.plans[at].get("entitlements").and_then(Value::as_object).cloned().unwrap_or_default();
        match what {
            Entitlements::List => return self.show_entitlements(&granted),
            Entitlements::Delete { feature } => {
                if granted.remove(feature).is_none() {
                    return missing;
                }
            }
            Entitlements::DeletePrivilege { feature, privilege } => {
                let values = granted.get_mut(feature).and_then(Value::as_object_mut);
                if values.and_then(|values| values.remove(privilege)).is_none() {
                    return missing;
                }
            }
            Entitlements::Replace | Entitlements::Merge => {
                let wanted = match serde_json::from_slice::<Object>(body) {
                    Ok(mut body) => body.remove("entitlements").and_then(|wanted| wanted.as_object().cloned()),
                    Err(_) => return Answer::bare(400),
                };
                if *what == Entitlements::Replace {
                    granted = Object::new();
                }
                if let Err(answer) = self.grant(&mut granted, &wanted.unwrap_or_default()) {
                    return *answer;
                }
            }
        }
        self.managed.plans[at].insert("entitlements".to_owned(), Value::Object(granted.clone()));
        self.show_entitlements(&granted)
    }

    fn grant(&self, granted: &mut Object, wanted: &Object) -> Result<(), Box<Answer>> {
        for (code, values) in wanted {
            let Some(feature) = self.managed.features.iter().find(|feature| text(feature, "code") == Some(code)) else {
                return refused(Answer::not_found("feature_not_found"));
            };
            let into = granted.entry(code.clone()).or_insert_with(|| json!({}));
            for (privilege, value) in values.as_object().into_iter().flatten() {
                let known = privileges(feature).iter().find(|known| known["code"] == privilege.as_str());
                let Some(known) = known else { return refused(Answer::not_found("privilege_not_found")) };
                if !fits(known, value) {
                    let field = format!("{}_privilege", known["value_type"].as_str().unwrap_or_default());
                    return refused(Answer::invalid(json!({ field: ["value_is_invalid"] })));
                }
                into[privilege] = value.clone();
            }
        }
        Ok(())
    }

    fn show_entitlements(&self, granted: &Object) -> Answer {
        let shown: Vec<Value> = granted
            .iter()
            .filter_map(|(code, values)| {
                let feature = self.managed.features.iter().find(|feature| text(feature, "code") == Some(code))?;
                let mut shown = Object::new();
                for privilege in privileges(feature) {
                    let code = privilege["code"].as_str().unwrap_or_default();
                    if let Some(value) = values.get(code) {
                        let mut privilege = privilege.clone();
                        privilege["value"] = value.clone();
                        shown.insert(code.to_owned(), privilege);
                    }
                }
                let (name, description) = (&feature["name"], &feature["description"]);
                Some(json!({ "code": code, "name": name, "description": description, "privileges": shown }))
            })
            .collect();
        Answer::json(200, &json!({ "entitlements": shown }))
    }
}

fn privileges(feature: &Object) -> &[Value] {
    feature.get("privileges").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn add_privileges(feature: &mut Object, params: &Params) -> Result<(), Box<Answer>> {
    let mut all = privileges(feature).to_vec();
    for wanted in params.list("privileges").into_iter().flatten() {
        if let Some(known) = all.iter_mut().find(|known| known["code"] == wanted["code"]) {
            if let Some(name) = wanted.get("name") {
                known["name"] = name.clone();
            }
            for option in wanted["config"]["select_options"].as_array().into_iter().flatten() {
                if let Some(options) = known["config"]["select_options"].as_array_mut()
                    && !options.contains(option)
                {
                    options.push(option.clone());
                }
            }
            continue;
        }
        let value_type = wanted["value_type"].as_str().unwrap_or("string");
        let mut wrong = Wrong::default();
        if wanted["code"].as_str().is_none_or(str::is_empty) {
            wrong.add("privilege.code", "value_is_mandatory");
        }
        if !VALUE_TYPES.contains(&value_type) {
            wrong.add("privilege.value_type", VALUE_IS_INVALID);
        }
        let has_options = wanted["config"]["select_options"].as_array().is_some_and(|options| !options.is_empty());
        if value_type == "select" && !has_options {
            wrong.add("privilege.config", "invalid_format");
        }
        wrong.done()?;
        let config = wanted.get("config").cloned().unwrap_or_else(|| json!({}));
        all.push(json!({
            "code": wanted["code"],
            "name": wanted["name"],
            "value_type": value_type,
            "config": config,
        }));
    }
    feature.insert("privileges".to_owned(), Value::Array(all));
    Ok(())
}

fn fits(privilege: &Value, value: &Value) -> bool {
    match privilege["value_type"].as_str() {
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("select") => {
            privilege["config"]["select_options"].as_array().is_some_and(|options| options.contains(value))
        }
        _ => value.is_string(),
    }
}
