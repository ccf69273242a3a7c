//! What an operator mounts on Authentik's worker: the blueprint that makes service account, mappings, transport, rule and
//! policy, and the one with the scope that puts a tenant into tokens.
//!
//! The two mappings are Python that Authentik runs. Both are made from one text, because the signature in the header is of
//! the bytes that the other one makes. The committed files in `config/authentik/` are what [`render`] gives, which a test
//! compares; that CPython makes from them what the daemon takes is tested in `tests/clients/authentik.rs`.
//!
//! Source of models, tags and fields: goauthentik/authentik `authentik/blueprints/v1/`, `authentik/events/models.py` at
//! 2024.10.1 and 2026.2.2.

use crate::envelope;

/// What everything that the blueprint makes is called, but the service account ([`envelope::SERVICE_ACCOUNT`]).
pub const NAME: &str = "outrigger-event-forwarder";
/// Name of the mapping that makes the body.
pub const BODY_MAPPING: &str = "outrigger-event-forwarder-body";
/// Name of the mapping that makes headers.
pub const HEADERS_MAPPING: &str = "outrigger-event-forwarder-headers";
/// Variable of worker and server with the URL that webhooks are sent to, where it is another than [`URL`].
pub const URL_VARIABLE: &str = "OUTRIGGER_WEBHOOK_URL";
/// Where webhooks are sent to where nothing else is said: the daemon beside Authentik in one compose project.
pub const URL: &str = "http://authentik-event-forwarder:8083/webhooks/authentik";
/// Variable of the worker with the key of the API token.
pub const TOKEN_VARIABLE: &str = "OUTRIGGER_AUTHENTIK_TOKEN";
/// File of the worker with the key of the API token.
pub const TOKEN_FILE: &str = "/run/secrets/outrigger-authentik-token";
/// Variable of worker and server that names another file than [`SECRET_FILE`].
pub const SECRET_FILE_VARIABLE: &str = "OUTRIGGER_WEBHOOK_SECRET_FILE";
/// File of worker and server with the secret that webhooks are signed with. The first line counts.
pub const SECRET_FILE: &str = "/run/secrets/authentik-webhook-secret";
/// Variable of worker and server with the secret, where there is no file.
pub const SECRET_VARIABLE: &str = "OUTRIGGER_WEBHOOK_SECRET";
/// Attribute of a user or a group that names the tenant.
pub const TENANT_ATTRIBUTE: &str = "tenant_id";
/// Names of groups that name the tenant: `tenant_<id>_<anything>`, which the event forwarder's
/// `enrichment.tenant_group_pattern` reads as `tenant_{id}_*`.
pub const TENANT_GROUP: &str = "tenant_([^_]+)_.*";

/// What the service account may do: read events, and what they are enriched with.
pub const PERMISSIONS: [&str; 4] = [
    "authentik_events.view_event",
    "authentik_core.view_user",
    "authentik_core.view_group",
    "authentik_brands.view_brand",
];

/// The actions that are sent at once, beside everything `custom_`. What a later version adds the poller brings.
///
/// Source: goauthentik/authentik `authentik/events/models.py` at 2024.10.1 and 2026.2.2; of 2026.8
/// goauthentik/client-rust `src/models/event_actions.rs`.
pub const ACTIONS: [&str; 26] = [
    "login",
    "login_failed",
    "logout",
    "user_write",
    "suspicious_request",
    "password_set",
    "secret_view",
    "secret_rotate",
    "invitation_used",
    "authorize_application",
    "source_linked",
    "impersonation_started",
    "impersonation_ended",
    "model_created",
    "model_updated",
    "model_deleted",
    "email_sent",
    "review_initiated",
    "review_overdue",
    "review_attested",
    "review_completed",
    "user_offboarded",
    "access_request_created",
    "access_request_approved",
    "access_request_denied",
    "access_request_revoked",
];

/// How a webhook shows that it is Authentik's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// Signed twice: in a header, over the bytes as sent, which 2025.4 and later do; and within the body, over the bytes
    /// of the event, which every version does.
    #[default]
    Hmac,
    /// The secret in `Authorization: Bearer`; 2025.4 and later.
    Bearer,
    /// The secret in the body; every version.
    BodySecret,
}

/// From where the worker has the key of the API token. The webhooks' secret is not in the blueprint at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenFrom {
    /// The variable [`TOKEN_VARIABLE`]; every version.
    #[default]
    Variable,
    /// The file [`TOKEN_FILE`]; 2025.8 and later.
    File,
}

/// The blueprint.
pub fn render(authentication: Authentication, token: TokenFrom) -> String {
    let has_headers = authentication != Authentication::BodySecret;
    let arguments = match (authentication, token) {
        (Authentication::Hmac, TokenFrom::Variable) => "",
        (Authentication::Hmac, TokenFrom::File) => " --token-from file",
        (Authentication::Bearer, TokenFrom::Variable) => " --authentication bearer",
        (Authentication::Bearer, TokenFrom::File) => " --authentication bearer --token-from file",
        (Authentication::BodySecret, TokenFrom::Variable) => " --authentication body-secret",
        (Authentication::BodySecret, TokenFrom::File) => " --authentication body-secret --token-from file",
    };
    let token = match token {
        TokenFrom::Variable => format!("!Env {TOKEN_VARIABLE}"),
        TokenFrom::File => format!("!File {TOKEN_FILE}"),
    };
    let permissions: String = PERMISSIONS.iter().map(|name| format!("        - {name}\n")).collect();
    let headers_entry = headers(authentication)
        .map(|headers| include_str!("headers_entry.template.yaml").replace("@HEADERS@\n", &indented(&headers)))
        .unwrap_or_default();
    let headers_attribute = if has_headers { "      webhook_mapping_headers: !KeyOf headers\n" } else { "" };
    let text = include_str!("outrigger.template.yaml")
        .replace("@ARGUMENTS@", arguments)
        .replace("@PERMISSIONS@\n", &permissions)
        .replace("@TOKEN@", &token)
        .replace("@HEADERS_ENTRY@\n", &headers_entry)
        .replace("@HEADERS_ATTRIBUTE@\n", headers_attribute)
        .replace("@BODY@\n", &indented(&body(authentication)))
        .replace("@POLICY@\n", &indented(&policy()));
    filled(&text)
}

/// The blueprint with the scope that puts [`TENANT_ATTRIBUTE`] into tokens.
pub fn render_tenant_claim() -> String {
    let expression =
        include_str!("tenant.py").replace("@ATTRIBUTE@", TENANT_ATTRIBUTE).replace("@REGEX@", TENANT_GROUP);
    include_str!("tenant.template.yaml").replace("@TENANT@\n", &indented(&expression))
}

/// The expression of the body mapping.
pub fn body(authentication: Authentication) -> String {
    // Once for a webhook: of the two mappings only this one, and with a bearer the one that has it.
    let said = match authentication {
        Authentication::Bearer => "",
        Authentication::Hmac | Authentication::BodySecret => {
            "if not secret():\n    say(\"there is no secret to sign with; set it for server and worker\", file=\"@SECRET_FILE@\")\n"
        }
    };
    let text = common(authentication) + "\n\n" + said + "return guarded(envelope, None)\n";
    filled(&text)
}

/// The expression of the header mapping, where there is one.
pub fn headers(authentication: Authentication) -> Option<String> {
    let text = match authentication {
        Authentication::Hmac => common(authentication) + include_str!("headers.hmac.py"),
        Authentication::Bearer => common(authentication) + include_str!("headers.bearer.py"),
        Authentication::BodySecret => return None,
    };
    Some(filled(&text))
}

/// The expression of the policy.
pub fn policy() -> String {
    let actions: String = ACTIONS.iter().map(|action| format!("    \"{action}\",\n")).collect();
    filled(&include_str!("policy.py").replace("@ACTIONS@\n", &actions))
}

fn common(authentication: Authentication) -> String {
    let authenticate = match authentication {
        Authentication::Hmac => include_str!("authenticate_body.hmac.py"),
        Authentication::Bearer => "",
        Authentication::BodySecret => include_str!("authenticate_body.secret.py"),
    };
    include_str!("envelope.py").replace("@AUTHENTICATE_BODY@\n", authenticate)
}

/// The names that are everywhere.
fn filled(text: &str) -> String {
    text.replace("@NAME@", NAME)
        .replace("@SERVICE_ACCOUNT@", envelope::SERVICE_ACCOUNT)
        .replace("@SCHEMA@", envelope::SCHEMA)
        .replace("@CANONICAL_VERSION@", envelope::CANONICAL_VERSION)
        .replace("@SIGNATURE_HEADER@", &title_case(envelope::SIGNATURE_HEADER))
        .replace("@SIGNATURE_PREFIX@", envelope::SIGNATURE_PREFIX)
        .replace("@BEARER_PREFIX@", envelope::BEARER_PREFIX)
        .replace("@SECRET_FILE_VARIABLE@", SECRET_FILE_VARIABLE)
        .replace("@SECRET_FILE@", SECRET_FILE)
        .replace("@SECRET_VARIABLE@", SECRET_VARIABLE)
        .replace("@URL_VARIABLE@", URL_VARIABLE)
        .replace("@URL@", URL)
}

/// A header's name as people write it.
fn title_case(name: &str) -> String {
    let word = |word: &str| word[..1].to_ascii_uppercase() + &word[1..];
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

/// Eight spaces, as far as the expressions of an entry are from the margin; empty lines stay empty.
fn indented(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("        {line}\n") }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;

    fn committed(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/authentik").join(name);
        std::fs::read_to_string(&path).unwrap_or_default()
    }

    #[test]
    fn the_committed_blueprints_are_what_the_template_gives() {
        for (name, text) in [
            ("outrigger.yaml", render(Authentication::Hmac, TokenFrom::Variable)),
            ("outrigger-files.yaml", render(Authentication::Hmac, TokenFrom::File)),
            ("outrigger-tenant.yaml", render_tenant_claim()),
        ] {
            if std::env::var_os("OUTRIGGER_WRITE_BLUEPRINTS").is_some() {
                let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/authentik");
                std::fs::write(folder.join(name), &text).unwrap();
            }
            assert_eq!(committed(name), text, "config/authentik/{name}: write it with OUTRIGGER_WRITE_BLUEPRINTS=1");
        }
    }

    #[test]
    fn nothing_of_a_template_is_left_over() {
        for authentication in [Authentication::Hmac, Authentication::Bearer, Authentication::BodySecret] {
            for token in [TokenFrom::Variable, TokenFrom::File] {
                let text = render(authentication, token);
                assert!(!text.contains('@'), "{text}");
                assert_eq!(text.contains("!File"), token == TokenFrom::File);
            }
        }
        assert!(!render_tenant_claim().contains('@'));
    }

    #[test]
    fn what_the_parts_of_authentik_say_about_themselves_is_not_sent() {
        for action in [
            "flow_execution",
            "policy_execution",
            "policy_exception",
            "property_mapping_exception",
            "system_task_execution",
            "system_task_exception",
            "system_exception",
            "configuration_error",
            "configuration_warning",
            "update_available",
            "export_ready",
        ] {
            assert!(!ACTIONS.contains(&action), "{action} in the allow-list makes loops");
        }
    }

    #[test]
    fn only_the_authentication_that_was_chosen_is_in_the_mappings() {
        let (body, headers) = (body(Authentication::BodySecret), headers(Authentication::BodySecret));
        assert!(body.contains("result[\"secret\"]") && !body.contains("\"signature\"") && headers.is_none());
        let (body, headers) = (super::body(Authentication::Bearer), super::headers(Authentication::Bearer));
        assert!(!body.contains("result[\"secret\"]") && !body.contains("\"signature\""));
        assert!(headers.is_some_and(|text| text.contains("\"Bearer \"") && !text.contains("sha256=")));
    }
}
