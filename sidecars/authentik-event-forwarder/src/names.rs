//! What an event is called: its type, whom it is about, and the platform's own name for it.

use std::collections::BTreeMap;

use kit_authentik::event::{Event, ModelRef};

use crate::config::EventsSection;

/// Longest subject that is made.
const SUBJECT_BYTES: usize = 300;

/// CloudEvents `type`.
pub(crate) fn event_type(event: &Event<'_>) -> String {
    format!("authentik.{}", event.action)
}

/// CloudEvents `subject`, within which deliveries keep their order: the object of a `model_*` event, else the user, else
/// the event itself. A user is the same subject whether it did something or something was done to it.
pub(crate) fn subject(event: &Event<'_>) -> String {
    let subject = match (&event.context.model, event.user.pk) {
        (Some(model), _) if event.action.starts_with("model_") => object(model),
        (_, Some(pk)) if !event.user.is_anonymous => format!("user/{pk}"),
        _ => String::new(),
    };
    if (1..=SUBJECT_BYTES).contains(&subject.len()) { subject } else { format!("event/{}", event.pk) }
}

fn object(model: &ModelRef) -> String {
    match (model.app.as_str(), model.model_name.as_str()) {
        ("authentik_core", "user") => format!("user/{}", model.pk),
        ("authentik_core", "group") => format!("group/{}", model.pk),
        (app, name) => format!("{app}.{name}/{}", model.pk),
    }
}

/// Number of the user that an event is about, where it is about one: the one that was changed, else the one that acted.
pub(crate) fn person(event: &Event<'_>) -> Option<i64> {
    let changed = event.context.model.as_ref().filter(|model| is_user(model)).and_then(|model| model.pk.parse().ok());
    changed.or_else(|| event.user.pk.filter(|_| !event.user.is_anonymous))
}

pub(crate) fn is_user(model: &ModelRef) -> bool {
    model.app == "authentik_core" && model.model_name == "user"
}

/// The platform's names, and those of the configuration.
#[derive(Debug, Default)]
pub(crate) struct Aliases {
    own: BTreeMap<String, String>,
    platform: bool,
}

impl Aliases {
    pub(crate) fn new(section: &EventsSection) -> Self {
        Self { own: section.aliases.clone(), platform: section.platform_names }
    }

    /// A second name of an event's type, where it has one.
    pub(crate) fn of(&self, event: &Event<'_>) -> Option<String> {
        let model = event.context.model.as_ref();
        let of_model = model.map(|model| format!("{}:{}.{}", event.action, model.app, model.model_name));
        let own = of_model.and_then(|name| self.own.get(&name)).or_else(|| self.own.get(&event.action));
        own.cloned().or_else(|| platform_name(event).filter(|_| self.platform).map(str::to_owned))
    }
}

/// The platform's name for an event, where it has one.
fn platform_name(event: &Event<'_>) -> Option<&'static str> {
    let of_user = event.context.model.as_ref().is_some_and(is_user);
    Some(match event.action.as_str() {
        // A stage of a flow writes a user: a sign-up where it made one.
        "user_write" if event.context.created == Some(true) => "user.created",
        "user_write" | "password_set" => "user.updated",
        "model_created" if of_user => "user.created",
        "model_updated" if of_user => "user.updated",
        "model_deleted" if of_user => "user.deactivated",
        "user_offboarded" => "user.deactivated",
        "login_failed" => "security.auth_failed",
        "suspicious_request" => "security.suspicious_activity",
        "source_linked" => "integration.connected",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PK: &str = "0f0e0d0c0b0a49088706050403020100";

    fn raw(action: &str, user: &str, context: &str) -> String {
        format!(r#"{{"pk":"{PK}","action":"{action}","user":{user},"context":{context}}}"#)
    }

    #[test]
    fn the_subject_is_the_object_or_the_user_or_the_event() {
        let check = |action: &str, user: &str, context: &str, expected: &str| {
            let raw = raw(action, user, context);
            assert_eq!(subject(&Event::read(&raw).unwrap()), expected, "{raw}");
        };
        let model = |app: &str, name: &str, pk: &str| {
            format!(r#"{{"model":{{"app":"{app}","model_name":"{name}","pk":{pk},"name":"n"}}}}"#)
        };
        check("login", r#"{"pk":5,"username":"jane"}"#, "{}", "user/5");
        check("model_updated", r#"{"pk":1}"#, &model("authentik_core", "user", "5"), "user/5");
        let group = format!(r#""{PK}""#);
        check("model_updated", r#"{"pk":1}"#, &model("authentik_core", "group", &group), &format!("group/{PK}"));
        let dashed = r#""0f0e0d0c-0b0a-4908-8706-050403020100""#;
        check("model_deleted", "{}", &model("authentik_core", "group", dashed), &format!("group/{PK}"));
        check("model_created", "{}", &model("authentik_rbac", "role", r#""x""#), "authentik_rbac.role/x");
        check("secret_view", r#"{"pk":1}"#, &model("authentik_core", "token", r#""x""#), "user/1");
        check("login_failed", r#"{"pk":2,"is_anonymous":true}"#, "{}", &format!("event/{PK}"));
        check("custom_notification_test", "{}", "{}", &format!("event/{PK}"));
        let endless = format!(r#""{}""#, "x".repeat(400));
        check("model_created", "{}", &model("a", "b", &endless), &format!("event/{PK}"));
    }

    #[test]
    fn the_platforms_names_are_given_where_they_are_asked_for_and_others_before_them() {
        let check = |section: &EventsSection, action: &str, context: &str, expected: Option<&str>| {
            let raw = raw(action, "{}", context);
            assert_eq!(Aliases::new(section).of(&Event::read(&raw).unwrap()).as_deref(), expected, "{raw}");
        };
        let user = r#"{"model":{"app":"authentik_core","model_name":"user","pk":5}}"#;
        let group = r#"{"model":{"app":"authentik_core","model_name":"group","pk":"x"}}"#;
        let platform = EventsSection { platform_names: true, ..EventsSection::default() };
        check(&EventsSection::default(), "login_failed", "{}", None);
        check(&platform, "login_failed", "{}", Some("security.auth_failed"));
        check(&platform, "suspicious_request", "{}", Some("security.suspicious_activity"));
        check(&platform, "user_write", r#"{"created":true}"#, Some("user.created"));
        check(&platform, "user_write", r#"{"created":false}"#, Some("user.updated"));
        check(&platform, "model_created", user, Some("user.created"));
        check(&platform, "model_deleted", user, Some("user.deactivated"));
        check(&platform, "model_created", group, None);
        check(&platform, "login", "{}", None);
        let aliases = [("model_created:authentik_core.group", "tenant.created"), ("login_failed", "mine")];
        let aliases = aliases.map(|(what, name)| (what.to_owned(), name.to_owned())).into();
        let own = EventsSection { platform_names: true, aliases, ..EventsSection::default() };
        check(&own, "model_created", group, Some("tenant.created"));
        check(&own, "model_created", user, Some("user.created"));
        check(&own, "login_failed", "{}", Some("mine"));
    }
}
