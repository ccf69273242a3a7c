//! Which events are not taken, and why.

use kit_authentik::api::Account;
use kit_authentik::event::Event;
use wildmatch::WildMatch;

use crate::config::EventsSection;

/// What Authentik says about its own working. A webhook about its own failure would cause the next one.
///
/// Source: goauthentik/authentik `authentik/events/models.py` (`EventAction`) at 2024.10.1 and 2026.2.2.
pub(crate) const OPERATIONAL: [&str; 11] = [
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
];

/// Why an event is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excluded {
    /// Its action is not among those to be taken.
    NotIncluded,
    /// Its action is among those not to be taken.
    Action,
    /// We, or what works for us, wrote to Authentik.
    OwnWrite,
}

impl Excluded {
    pub(crate) const ALL: [Self; 3] = [Self::NotIncluded, Self::Action, Self::OwnWrite];

    /// A constant name, fit for a metric label.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::NotIncluded => "not_included",
            Self::Action => "action",
            Self::OwnWrite => "own_write",
        }
    }
}

/// What is taken.
#[derive(Debug)]
pub(crate) struct Rules {
    include: Vec<WildMatch>,
    exclude: Vec<WildMatch>,
    /// Name of the account whose writes are our own.
    own: Option<String>,
}

impl Rules {
    pub(crate) fn new(section: &EventsSection) -> Self {
        let patterns = |actions: &[String]| actions.iter().map(|action| WildMatch::new(action)).collect();
        Self {
            include: patterns(&section.include),
            exclude: patterns(&section.exclude),
            own: (!section.own_writes).then(|| section.service_account.clone()),
        }
    }

    /// Whether what this account writes is our own. Where it is a person's, its changes are events like any other.
    pub(crate) fn is_own(&self, account: &Account) -> bool {
        let by_name = self.own.as_deref() == Some(account.username.as_str());
        by_name || account.kind.as_deref() == Some("service_account")
    }

    /// Whether an event is left out. `own_pk` is the number of the account whose writes are our own, where it is known: it
    /// may have been renamed.
    pub(crate) fn excluded(&self, event: &Event<'_>, own_pk: Option<i64>) -> Option<Excluded> {
        let any = |patterns: &[WildMatch]| patterns.iter().any(|pattern| pattern.matches(&event.action));
        if !self.include.is_empty() && !any(&self.include) {
            return Some(Excluded::NotIncluded);
        }
        if any(&self.exclude) {
            return Some(Excluded::Action);
        }
        let own = self.own.as_deref().filter(|_| event.action.starts_with("model_"))?;
        let by_name = event.user.username.as_deref() == Some(own);
        let by_number = own_pk.is_some() && event.user.pk == own_pk;
        (by_name || by_number).then_some(Excluded::OwnWrite)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(section: &EventsSection, action: &str, user: &str, expected: Option<Excluded>) {
        let raw = format!(r#"{{"pk":"0f0e0d0c0b0a49088706050403020100","action":"{action}","user":{user}}}"#);
        let event = Event::read(&raw).unwrap();
        assert_eq!(Rules::new(section).excluded(&event, Some(7)), expected, "{raw}");
    }

    #[test]
    fn authentiks_own_noise_and_our_own_writes_are_left_out() {
        let usual = EventsSection::default();
        check(&usual, "login", r#"{"pk":5,"username":"jane"}"#, None);
        check(&usual, "custom_whatever", "{}", None);
        check(&usual, "an_action_of_tomorrow", "{}", None);
        check(&usual, "policy_exception", "{}", Some(Excluded::Action));
        check(&usual, "system_task_exception", "{}", Some(Excluded::Action));
        check(&usual, "model_updated", r#"{"pk":5,"username":"jane"}"#, None);
        check(&usual, "model_updated", r#"{"pk":6,"username":"outrigger"}"#, Some(Excluded::OwnWrite));
        check(&usual, "model_updated", r#"{"pk":7,"username":"renamed"}"#, Some(Excluded::OwnWrite));
        check(&usual, "login", r#"{"pk":7,"username":"outrigger"}"#, None);
    }

    #[test]
    fn a_persons_token_makes_nothing_our_own() {
        let rules = Rules::new(&EventsSection::default());
        let is_own = |username: &str, kind: Option<&str>| {
            rules.is_own(&Account { pk: 4, username: username.to_owned(), kind: kind.map(str::to_owned) })
        };
        assert!(!is_own("akadmin", Some("internal")) && !is_own("akadmin", None));
        assert!(is_own("renamed", Some("service_account")) && is_own("outrigger", Some("internal")));
    }

    #[test]
    fn what_is_taken_can_be_chosen() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let chosen = EventsSection {
            include: texts(&["log*", "model_*"]),
            exclude: texts(&["logout"]),
            own_writes: true,
            ..EventsSection::default()
        };
        check(&chosen, "login_failed", "{}", None);
        check(&chosen, "logout", "{}", Some(Excluded::Action));
        check(&chosen, "secret_view", "{}", Some(Excluded::NotIncluded));
        check(&chosen, "model_updated", r#"{"username":"outrigger"}"#, None);
    }
}
