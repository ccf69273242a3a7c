//! Webhook endpoints. The stand-in keeps them and sends nothing to them.
//!
//! Source: getlago/lago-api `app/models/webhook_endpoint.rb`, `app/services/webhook_endpoints/`.

use serde_json::{Value, json};
use url::Url;

use super::params::{Params, Wrong};
use super::{Answer, Desk, Object, Outcome, new_object, refused, text};
use crate::webhook_type;

/// The organisation of every endpoint.
const ORGANIZATION_ID: &str = "1a901a90-1a90-1a90-1a90-1a901a901a90";

impl Desk<'_> {
    pub(super) fn create_endpoint(&mut self, params: &Params) -> Outcome {
        let mut endpoint = new_object();
        endpoint.insert("lago_organization_id".to_owned(), json!(ORGANIZATION_ID));
        if !self.profile.filters_webhooks() {
            endpoint.remove("created_at");
        }
        endpoint.insert("signature_algo".to_owned(), params.get("signature_algo").cloned().unwrap_or(json!("jwt")));
        self.take_over(params, &mut endpoint)?;
        let url = text(&endpoint, "webhook_url").unwrap_or_default();
        let mut wrong = self.judge_url(url, None);
        if self.managed.endpoints.len() >= self.profile.most_endpoints() {
            // A sentence where other errors have codes.
            let most = self.profile.most_endpoints();
            wrong.add("base", &format!("Maximum number of webhook endpoints reached ({most})"));
        }
        wrong.done()?;
        self.managed.endpoints.push(endpoint.clone());
        Ok(Value::Object(endpoint))
    }

    pub(super) fn update_endpoint(&mut self, at: usize, params: &Params) -> Outcome {
        let mut endpoint = self.managed.endpoints[at].clone();
        if !self.profile.filters_webhooks() {
            // Both are written, whether they were sent or not, and the database takes no NULL.
            for name in ["webhook_url", "signature_algo"] {
                endpoint.insert(name.to_owned(), params.get(name).cloned().unwrap_or(Value::Null));
            }
        }
        self.take_over(params, &mut endpoint)?;
        self.judge_url(text(&endpoint, "webhook_url").unwrap_or_default(), Some(at)).done()?;
        self.managed.endpoints[at] = endpoint.clone();
        Ok(Value::Object(endpoint))
    }

    /// An algorithm that there is not is an error that nobody catches.
    fn take_over(&self, params: &Params, endpoint: &mut Object) -> Result<(), Box<Answer>> {
        params.copy(&["webhook_url", "signature_algo"], endpoint);
        if !matches!(text(endpoint, "signature_algo"), Some("jwt" | "hmac")) {
            return refused(Answer::bare(500));
        }
        if !self.profile.filters_webhooks() {
            return Ok(());
        }
        params.copy(&["name"], endpoint);
        endpoint.entry("name".to_owned()).or_insert(Value::Null);
        if params.has("event_types") {
            let types = params.texts("event_types");
            let types: Option<Vec<String>> =
                types.map(|types| types.iter().map(|name| name.trim().to_lowercase()).collect());
            let is_known = |name: &String| name == "*" || webhook_type::find(name).is_some();
            if types.iter().flatten().any(|name| !is_known(name)) {
                return refused(Answer::invalid(json!({ "event_types": ["value_is_invalid"] })));
            }
            let types = types.filter(|types| !types.iter().any(|name| name == "*"));
            endpoint.insert("event_types".to_owned(), json!(types));
        }
        endpoint.entry("event_types".to_owned()).or_insert(Value::Null);
        Ok(())
    }

    fn judge_url(&self, url: &str, own: Option<usize>) -> Wrong {
        let mut wrong = Wrong::default();
        if !Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
            wrong.add("webhook_url", "url_is_invalid");
        }
        let mut others = self.managed.endpoints.iter().enumerate().filter(|(at, _)| Some(*at) != own);
        wrong.taken("webhook_url", others.any(|(_, other)| text(other, "webhook_url") == Some(url)));
        wrong
    }
}
