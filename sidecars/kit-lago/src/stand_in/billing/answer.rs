//! What Lago answers with: its shapes for errors and for pages. No decision is taken here.
//!
//! Source: getlago/lago-api `app/controllers/concerns/api_errors.rb` and `pagination.rb` at v1.16.0
//! and at the head of 2026-08-21.

use serde_json::{Value, json};

const JSON: &str = "application/json; charset=utf-8";
const HTML: &str = "text/html";

/// A page holds this many where nothing is asked for; there is no maximum.
const PER_PAGE: usize = 100;

/// Why an attribute is refused.
pub(super) const VALUE_IS_MANDATORY: &str = "value_is_mandatory";
pub(super) const VALUE_ALREADY_EXIST: &str = "value_already_exist";
pub(super) const INVALID_FORMAT: &str = "invalid_format";

/// A complete answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn ok(body: String) -> Self {
        Self { status: 200, content_type: JSON, headers: Vec::new(), body }
    }

    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self { status, ..Self::ok(body.to_string()) }
    }

    /// The same page of a list without its entries; any other answer as it is.
    pub(super) fn without_entries(mut self) -> Self {
        if let Ok(Value::Object(mut page)) = serde_json::from_str(&self.body) {
            page.values_mut().filter(|value| value.is_array()).for_each(|entries| *entries = json!([]));
            self.body = Value::Object(page).to_string();
        }
        self
    }

    /// The root key of a request is not there.
    pub(super) fn missing_root_key(key: &str) -> Self {
        let error = format!("BadRequest: param is missing or the value is empty: {key}");
        Self::json(400, &json!({ "status": 400, "error": error }))
    }

    pub(super) fn unauthorized() -> Self {
        Self::json(401, &json!({ "status": 401, "error": "Unauthorized" }))
    }

    pub(super) fn not_found(code: &str) -> Self {
        Self::json(404, &json!({ "status": 404, "error": "Not Found", "code": code }))
    }

    /// The state of the business forbids it.
    pub(super) fn not_allowed(code: &str) -> Self {
        Self::json(405, &json!({ "status": 405, "error": "Method Not Allowed", "code": code }))
    }

    pub(super) fn invalid(error_details: Value) -> Self {
        let code = "validation_errors";
        let body =
            json!({ "status": 422, "error": "Unprocessable Entity", "code": code, "error_details": error_details });
        Self::json(422, &body)
    }

    pub(super) fn too_many_requests(limit: u32, reset_seconds: u32) -> Self {
        // Lago Cloud's proxy documents the headers and not the body.
        // Source: docs.getlago.com, page api-reference/rate-limits.
        let mut answer = Self::bare(429);
        answer.headers = vec![
            ("x-ratelimit-limit", limit.to_string()),
            ("x-ratelimit-remaining", "0".to_owned()),
            ("x-ratelimit-reset", reset_seconds.to_string()),
        ];
        answer
    }

    /// A status without more than its name: what Rails says where Lago's code has no part in the
    /// answer, or a page of HTML where a proxy is speaking.
    pub(super) fn bare(status: u16) -> Self {
        let known = http::StatusCode::from_u16(status).ok();
        let reason = match status {
            // Newer tables call it "Unprocessable Content"; Lago's Rack does not.
            422 => "Unprocessable Entity",
            _ => known.and_then(|status| status.canonical_reason()).unwrap_or("Error"),
        };
        if matches!(status, 502..=504) {
            return Self::page(status, reason);
        }
        Self::json(status, &json!({ "status": status, "error": reason }))
    }

    /// What a proxy says in its own words.
    pub(super) fn page(status: u16, reason: &str) -> Self {
        let body = format!("<html><body><h1>{status} {reason}</h1></body></html>");
        Self { status, content_type: HTML, headers: Vec::new(), body }
    }
}

/// One page of a list, as asked for by `page` and `per_page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    number: usize,
    size: usize,
}

impl Page {
    /// Whatever is not a positive number counts as absent.
    pub(super) fn of(page: Option<&str>, per_page: Option<&str>) -> Self {
        let positive = |text: Option<&str>| text.and_then(|text| text.parse().ok()).filter(|number| *number > 0);
        Self { number: positive(page).unwrap_or(1), size: positive(per_page).unwrap_or(PER_PAGE) }
    }

    /// Where the page lies in a list of `total`.
    pub(super) fn range(self, total: usize) -> std::ops::Range<usize> {
        let start = (self.number - 1).saturating_mul(self.size).min(total);
        start..start.saturating_add(self.size).min(total)
    }

    /// What is said about the page. The page of an empty list has the number 0.
    pub(super) fn meta(self, total: usize) -> Value {
        let pages = total.div_ceil(self.size);
        let current = if total == 0 { 0 } else { self.number };
        json!({
            "current_page": current,
            "next_page": (current > 0 && current < pages).then(|| current + 1),
            "prev_page": (current > 1).then(|| current - 1),
            "total_pages": pages,
            "total_count": total,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_say_what_lies_around_them() {
        let page = Page::of(Some("2"), Some("3"));

        assert_eq!(page.range(7), 3..6);
        let meta = json!({ "current_page": 2, "next_page": 3, "prev_page": 1, "total_pages": 3, "total_count": 7 });
        assert_eq!(page.meta(7), meta);
        assert_eq!(page.range(2), 2..2);
        assert_eq!(Page::of(Some("x"), Some("0")), Page::of(None, None));
        assert_eq!(Page::of(None, None).range(1_000), 0..100);
    }

    #[test]
    fn the_page_of_an_empty_list_has_number_zero() {
        let meta =
            json!({ "current_page": 0, "next_page": null, "prev_page": null, "total_pages": 0, "total_count": 0 });
        assert_eq!(Page::of(None, None).meta(0), meta);
    }
}
