//! What is known of users: asked once, kept for a while and within bounds, never asked while a webhook waits.
//!
//! A webhook takes what is known at that moment, also when it has become old, and has the user asked for afterwards. What
//! the poller brings waits for the answer, a little. So events are enriched as a rule and not by promise: the first event of
//! a user of whom nothing is known yet, or while Authentik is away, goes without (ADR 0022).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use kit::lifecycle::StopToken;
use kit_authentik::api::{ApiError, AuthentikApi, User};
use kit_authentik::event::Event;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::EnrichmentSection;
use crate::metrics::PollMetrics;
use crate::names;
use crate::tenant::Pattern;

/// Users that wait to be asked for.
const WANTED: usize = 1024;
/// What is remembered of all users together.
const BYTES: usize = 8 << 20;
/// What an entry takes beside its texts.
const ENTRY_BYTES: usize = 200;
/// Groups of a user that are shown at most.
const GROUPS: usize = 200;
/// Authentik announces a change of a group before it makes it.
///
/// Source: goauthentik/authentik `authentik/events/middleware.py` (`m2m_changed`, `pre_add`) at 2024.10.1.
const AFTER_A_CHANGE: Duration = Duration::from_secs(1);
/// Seconds after an answer that did not come.
const AGAIN: [u64; 5] = [1, 2, 5, 15, 30];

/// What is added to events about a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Whose it is.
    pub(crate) tenant: Option<String>,
    /// The member that is added to the event, as JSON.
    pub(crate) shown: Option<String>,
}

/// Users by number. Cheap to clone; all clones know the same.
#[derive(Clone, Debug)]
pub(crate) struct People {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `None`: nobody is asked for.
    rules: Option<Rules>,
    keep: Duration,
    most: usize,
    memory: Mutex<Memory>,
    asked: Notify,
    /// Number of our own account; 0 while it is not known.
    own: AtomicI64,
}

#[derive(Debug)]
struct Rules {
    shows_user: bool,
    pattern: Option<Pattern>,
    attribute: Option<String>,
}

#[derive(Debug, Default)]
struct Memory {
    users: HashMap<i64, Entry>,
    /// In the order in which they were asked for; the first goes first.
    order: VecDeque<i64>,
    bytes: usize,
    /// Who is to be asked for, and not before when.
    wanted: VecDeque<(i64, Instant)>,
}

#[derive(Debug)]
struct Entry {
    known: Arc<Known>,
    at: Instant,
    /// Something has changed since.
    stale: bool,
}

impl People {
    pub(crate) fn new(section: &EnrichmentSection) -> Self {
        let rules = section.is_on().then(|| Rules {
            shows_user: section.user,
            pattern: section.tenant_group_pattern.as_deref().and_then(|text| Pattern::new(text).ok()),
            attribute: section.tenant_attribute.clone(),
        });
        let shared = Shared {
            rules,
            keep: Duration::try_from_secs_f64(section.cache_seconds).unwrap_or(Duration::from_secs(600)),
            most: section.cache_users,
            memory: Mutex::default(),
            asked: Notify::new(),
            own: AtomicI64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Number of the account whose writes are our own.
    pub(crate) fn own_pk(&self) -> Option<i64> {
        Some(self.shared.own.load(Ordering::Relaxed)).filter(|pk| *pk != 0)
    }

    pub(crate) fn set_own_pk(&self, pk: i64) {
        self.shared.own.store(pk, Ordering::Relaxed);
    }

    /// Whether anybody is asked for.
    pub(crate) fn is_on(&self) -> bool {
        self.shared.rules.is_some()
    }

    /// Whether an event is about a user of whom something is to be known.
    pub(crate) fn wants(&self, event: &Event<'_>) -> bool {
        self.is_on() && names::person(event).is_some()
    }

    /// What is known at this moment of the user that an event is about. What is not known, or old, is asked for afterwards.
    pub(crate) fn known(&self, event: &Event<'_>) -> Option<Arc<Known>> {
        if !self.is_on() {
            return None;
        }
        let mut memory = self.memory();
        let now = Instant::now();
        memory.notice(event, now);
        let pk = names::person(event)?;
        let entry = memory.users.get(&pk);
        let known = entry.map(|entry| Arc::clone(&entry.known));
        let is_fresh = entry.is_some_and(|entry| !entry.stale && now.duration_since(entry.at) < self.shared.keep);
        if !is_fresh {
            memory.want(pk, now);
            drop(memory);
            self.shared.asked.notify_one();
        }
        known
    }

    /// Asks for those of whom nothing is known, one after the other; whom Authentik does not have is known as nobody.
    ///
    /// # Errors
    /// The first answer that did not come.
    pub(crate) async fn ask(
        &self,
        api: &AuthentikApi,
        metrics: &PollMetrics,
        pks: impl Iterator<Item = i64>,
    ) -> Result<(), ApiError> {
        for pk in pks {
            if self.memory().users.contains_key(&pk) {
                continue;
            }
            self.ask_one(api, metrics, pk).await?;
        }
        Ok(())
    }

    async fn ask_one(&self, api: &AuthentikApi, metrics: &PollMetrics, pk: i64) -> Result<(), ApiError> {
        metrics.requests.inc();
        let user = api.user(pk).await.inspect_err(|_| {
            metrics.failures.inc();
        })?;
        self.learn(pk, user.as_ref());
        Ok(())
    }

    fn learn(&self, pk: i64, user: Option<&User>) {
        let Some(rules) = &self.shared.rules else { return };
        let known = user.map(|user| rules.known(user)).unwrap_or_default();
        let mut memory = self.memory();
        memory.put(pk, known, Instant::now());
        while memory.users.len() > self.shared.most || memory.bytes > BYTES {
            memory.forget_one();
        }
    }

    /// Asks for everybody who is wanted, for the life of the daemon.
    pub(crate) async fn run(
        self,
        api: AuthentikApi,
        metrics: PollMetrics,
        stop: StopToken,
    ) -> Result<(), std::convert::Infallible> {
        tokio::select! {
            () = stop.stopped() => {}
            () = self.answer(&api, &metrics) => {}
        }
        Ok(())
    }

    async fn answer(&self, api: &AuthentikApi, metrics: &PollMetrics) {
        let mut failures = 0;
        // Those who were here lately are known before their next event comes.
        while let Err(error) = self.load(api, metrics).await {
            failures += 1;
            tracing::debug!(error = %error, "users cannot be read yet: {error}");
            tokio::time::sleep(Duration::from_secs(AGAIN[failures.min(AGAIN.len()) - 1])).await;
        }
        failures = 0;
        loop {
            let next = self.memory().wanted.front().copied();
            let Some((pk, due)) = next else {
                self.shared.asked.notified().await;
                continue;
            };
            tokio::time::sleep_until(due).await;
            match self.ask_one(api, metrics, pk).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    // Whoever asks for events says so aloud.
                    tracing::debug!(error = %error, user.pk = pk, "user {pk} cannot be read: {error}");
                    tokio::time::sleep(Duration::from_secs(AGAIN[failures.min(AGAIN.len()) - 1])).await;
                }
            }
            // Whoever cannot be read is asked for again with the next event.
            self.memory().wanted.retain(|(wanted, _)| *wanted != pk);
        }
    }

    async fn load(&self, api: &AuthentikApi, metrics: &PollMetrics) -> Result<(), ApiError> {
        let mut page = 1;
        loop {
            metrics.requests.inc();
            let (users, has_next) = api.users(page).await.inspect_err(|_| {
                metrics.failures.inc();
            })?;
            for user in &users {
                if self.memory().users.len() >= self.shared.most {
                    return Ok(());
                }
                self.learn(user.pk, Some(user));
            }
            if !has_next || users.is_empty() {
                return Ok(());
            }
            page += 1;
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// An event that says that users or groups are others than was known.
    fn notice(&mut self, event: &Event<'_>, now: Instant) {
        let changed = event.context.model.as_ref().filter(|_| event.action.starts_with("model_"));
        let Some(model) = changed.filter(|model| model.app == "authentik_core") else { return };
        match (model.model_name.as_str(), model.pk.parse::<i64>()) {
            ("user", Ok(pk)) => {
                if let Some(entry) = self.users.get_mut(&pk) {
                    entry.stale = true;
                }
                self.want(pk, now + AFTER_A_CHANGE);
            }
            // It does not say whose group it is now.
            ("group", _) => self.users.values_mut().for_each(|entry| entry.stale = true),
            _ => {}
        }
    }

    fn want(&mut self, pk: i64, due: Instant) {
        if self.wanted.len() < WANTED && self.wanted.iter().all(|(wanted, _)| *wanted != pk) {
            self.wanted.push_back((pk, due));
        }
    }

    fn put(&mut self, pk: i64, known: Known, at: Instant) {
        self.remove(pk);
        self.bytes += known.bytes();
        self.order.push_back(pk);
        self.users.insert(pk, Entry { known: Arc::new(known), at, stale: false });
    }

    fn remove(&mut self, pk: i64) {
        if let Some(entry) = self.users.remove(&pk) {
            self.bytes -= entry.known.bytes();
            self.order.retain(|known| *known != pk);
        }
    }

    fn forget_one(&mut self) {
        if let Some(oldest) = self.order.pop_front()
            && let Some(entry) = self.users.remove(&oldest)
        {
            self.bytes -= entry.known.bytes();
        }
    }
}

impl Known {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.tenant.as_ref().map_or(0, String::len) + self.shown.as_ref().map_or(0, String::len)
    }
}

impl Rules {
    fn known(&self, user: &User) -> Known {
        let tenant = self.tenant(user);
        let shown = self.shows_user.then(|| {
            let groups: Vec<&str> =
                user.groups.iter().flatten().map(|group| group.name.as_str()).take(GROUPS).collect();
            let shown = json!({
                "user": {
                    "pk": user.pk, "username": user.username, "name": user.name, "email": user.email, "uuid": user.uuid,
                    "uid": user.uid, "type": user.kind, "is_active": user.is_active, "groups": groups,
                },
                "tenant": tenant,
            });
            shown.to_string()
        });
        Known { tenant, shown }
    }

    /// Whose a user is: its own attribute first, then its groups. Where groups say different things nobody knows.
    fn tenant(&self, user: &User) -> Option<String> {
        let attribute = |attributes: &serde_json::Map<String, serde_json::Value>| {
            self.attribute.as_ref().and_then(|name| attributes.get(name)).and_then(text)
        };
        if let Some(own) = attribute(&user.attributes) {
            return Some(own);
        }
        let groups = user.groups.iter().flatten();
        let of_groups = groups.filter_map(|group| {
            let named = || self.pattern.as_ref().and_then(|pattern| pattern.tenant(&group.name)).map(str::to_owned);
            attribute(&group.attributes).or_else(named)
        });
        let mut tenants: Vec<String> = of_groups.collect();
        tenants.sort_unstable();
        tenants.dedup();
        if tenants.len() == 1 { tenants.pop() } else { None }
    }
}

fn text(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) if !text.is_empty() => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn section() -> EnrichmentSection {
        EnrichmentSection {
            user: true,
            tenant_group_pattern: Some("tenant_{id}_*".to_owned()),
            tenant_attribute: Some("tenant_id".to_owned()),
            cache_users: 3,
            ..EnrichmentSection::default()
        }
    }

    fn user(pk: i64, attributes: &str, groups: &[(&str, &str)]) -> User {
        let groups: Vec<String> = groups
            .iter()
            .map(|(name, attributes)| format!(r#"{{"pk":"g","name":"{name}","attributes":{attributes}}}"#))
            .collect();
        let groups = groups.join(",");
        let json = format!(r#"{{"pk":{pk},"username":"u","attributes":{attributes},"groups_obj":[{groups}]}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn known(people: &People, raw: &str) -> Option<Arc<Known>> {
        people.known(&Event::read(raw).unwrap())
    }

    fn login(pk: i64) -> String {
        format!(r#"{{"pk":"0f0e0d0c0b0a49088706050403020100","action":"login","user":{{"pk":{pk}}}}}"#)
    }

    #[tokio::test]
    async fn the_tenant_is_an_attribute_or_a_groups_name_and_nobody_where_they_disagree() {
        let check = |attributes: &str, groups: &[(&str, &str)], expected: Option<&str>| {
            let people = People::new(&section());
            people.learn(5, Some(&user(5, attributes, groups)));
            assert_eq!(known(&people, &login(5)).unwrap().tenant.as_deref(), expected, "{attributes} {groups:?}");
        };
        check("{}", &[("staff", "{}"), ("tenant_42_admins", "{}")], Some("42"));
        check("{}", &[("tenant_42_admins", "{}"), ("tenant_42_users", "{}")], Some("42"));
        check("{}", &[("tenant_42_admins", "{}"), ("tenant_43_users", "{}")], None);
        check(r#"{"tenant_id":"7"}"#, &[("tenant_42_admins", "{}")], Some("7"));
        check(r#"{"tenant_id":7}"#, &[], Some("7"));
        check("{}", &[("tenant_42_admins", r#"{"tenant_id":"9"}"#)], Some("9"));
        check(r#"{"tenant_id":""}"#, &[], None);
    }

    #[tokio::test]
    async fn whom_nobody_knows_is_asked_for_and_the_oldest_are_forgotten() {
        let people = People::new(&section());
        assert!(known(&people, &login(1)).is_none());
        assert!(known(&people, &login(1)).is_none());
        assert_eq!(people.memory().wanted.len(), 1, "once");
        for pk in 1..=4 {
            people.learn(pk, Some(&user(pk, "{}", &[])));
        }
        assert!(known(&people, &login(1)).is_none() && known(&people, &login(4)).is_some());
        people.learn(9, None);
        assert_eq!(*known(&people, &login(9)).unwrap(), Known::default(), "Authentik has no such user");
        let bytes: usize = people.memory().users.values().map(|entry| entry.known.bytes()).sum();
        assert_eq!(people.memory().bytes, bytes);
    }

    #[tokio::test]
    async fn a_change_of_a_user_or_a_group_has_it_asked_for_again() {
        let people = People::new(&section());
        let wanted = || people.memory().wanted.iter().map(|(pk, _)| *pk).collect::<Vec<_>>();
        let changed = |name: &str, pk: &str| {
            format!(
                r#"{{"pk":"0f0e0d0c0b0a49088706050403020100","action":"model_updated","user":{{}},
                "context":{{"model":{{"app":"authentik_core","model_name":"{name}","pk":{pk}}}}}}}"#
            )
        };
        people.learn(1, Some(&user(1, "{}", &[])));
        people.learn(2, Some(&user(2, "{}", &[])));
        known(&people, &login(1));
        assert!(wanted().is_empty());

        assert!(known(&people, &changed("user", "1")).is_some(), "what is known is used until more is");
        assert_eq!(wanted(), [1]);
        known(&people, &changed("group", r#""g""#));
        known(&people, &login(2));
        assert_eq!(wanted(), [1, 2]);
    }

    #[tokio::test]
    async fn where_nothing_is_asked_for_nobody_is() {
        let people = People::new(&EnrichmentSection::default());
        assert!(known(&people, &login(1)).is_none() && people.memory().wanted.is_empty());
    }
}
