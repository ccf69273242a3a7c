//! What is known of users: asked once, kept for a while and within bounds, never asked while a webhook waits.
//!
//! A webhook takes what is known at that moment and has the user asked for afterwards. What the poller brings waits for the
//! answer, a little. So events are enriched as a rule and not by promise: the first event of a user of whom nothing is known
//! yet, or no more, or while Authentik is away, goes without (ADR 0022). It goes without rather than with what was: a tenant
//! that is not the user's any more shows one customer's event to another.

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
/// Users whose last change is remembered one by one.
const CHANGED: usize = 1024;
/// Answers for one user that may be overtaken by changes before its events go without.
const TRIES: u32 = 3;
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
    /// When those who were here lately are to be asked for all at once.
    wanted_all: Option<Instant>,
    changes: Changes,
}

#[derive(Debug)]
struct Entry {
    known: Arc<Known>,
    /// When it was asked for.
    at: Instant,
}

/// From when on a question is answered with what is after the last change: an answer to an earlier one may hold what was.
#[derive(Debug, Default)]
struct Changes {
    of_all: Option<Instant>,
    of_users: HashMap<i64, Instant>,
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

    /// Forgets whom an event says to be others than was known, and has them asked for. To be told of every event before
    /// anything is taken from what is known.
    pub(crate) fn notice(&self, event: &Event<'_>) {
        if self.is_on() && self.memory().notice(event, Instant::now()) {
            self.shared.asked.notify_one();
        }
    }

    /// What is known at this moment of the user that an event is about. What is not known, or is old, is asked for afterwards.
    pub(crate) fn known(&self, event: &Event<'_>) -> Option<Arc<Known>> {
        if !self.is_on() {
            return None;
        }
        let pk = names::person(event)?;
        let mut memory = self.memory();
        let now = Instant::now();
        let known = memory.fresh(pk, now, self.shared.keep);
        if known.is_none() {
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
            for _ in 0..TRIES {
                if self.is_fresh(pk) {
                    break;
                }
                let settled = self.memory().changes.settled(pk);
                if let Some(settled) = settled {
                    tokio::time::sleep_until(settled).await;
                }
                if self.ask_one(api, metrics, pk).await? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether the answer counts: `false` where a change has overtaken it.
    async fn ask_one(&self, api: &AuthentikApi, metrics: &PollMetrics, pk: i64) -> Result<bool, ApiError> {
        metrics.requests.inc();
        let asked = Instant::now();
        let user = api.user(pk).await.inspect_err(|_| {
            metrics.failures.inc();
        })?;
        Ok(self.learn(pk, user.as_ref(), asked))
    }

    fn learn(&self, pk: i64, user: Option<&User>, asked: Instant) -> bool {
        let Some(rules) = &self.shared.rules else { return true };
        let known = user.map(|user| rules.known(user)).unwrap_or_default();
        let mut memory = self.memory();
        if memory.changes.settled(pk).is_some_and(|settled| asked < settled) {
            return false;
        }
        memory.put(pk, known, asked);
        while memory.users.len() > self.shared.most || memory.bytes > BYTES {
            memory.forget_one();
        }
        true
    }

    fn is_fresh(&self, pk: i64) -> bool {
        self.memory().fresh(pk, Instant::now(), self.shared.keep).is_some()
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
        let (mut failures, mut failed_loads) = (0, 0);
        // Those who were here lately are known before their next event comes. A list that Authentik cannot give keeps nobody
        // from being asked for alone.
        let mut load_at = Some(Instant::now());
        loop {
            if load_at.is_some_and(|at| at <= Instant::now()) {
                load_at = match self.load(api, metrics, usize::MAX).await {
                    Ok(()) => None,
                    Err(error) => {
                        failed_loads += 1;
                        tracing::debug!(error = %error, "users cannot be listed yet: {error}");
                        Some(Instant::now() + after(failed_loads))
                    }
                };
                continue;
            }
            let next = self.memory().next_wanted();
            let Some((who, _)) = next.filter(|(_, due)| *due <= Instant::now()) else {
                let due = load_at.into_iter().chain(next.map(|(_, due)| due)).min();
                tokio::select! {
                    () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                    () = self.shared.asked.notified() => {}
                }
                continue;
            };
            match self.answer_one(api, metrics, who).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    // Whoever asks for events says so aloud. Whoever cannot be read is asked for again with the next event.
                    tracing::debug!(error = %error, "users cannot be read: {error}");
                    tokio::time::sleep(after(failures)).await;
                }
            }
        }
    }

    async fn answer_one(&self, api: &AuthentikApi, metrics: &PollMetrics, who: Wanted) -> Result<(), ApiError> {
        let Wanted::One(pk) = who else {
            self.memory().wanted_all = None;
            // One request: the others are asked for when they come.
            return self.load(api, metrics, 1).await;
        };
        // Before it is asked for: a change meanwhile has it asked for again.
        self.memory().wanted.retain(|(wanted, _)| *wanted != pk);
        if !self.is_fresh(pk) && !self.ask_one(api, metrics, pk).await? {
            self.memory().want(pk, Instant::now());
        }
        Ok(())
    }

    /// Asks for those who were here lately, at most so many pages of them.
    async fn load(&self, api: &AuthentikApi, metrics: &PollMetrics, pages: usize) -> Result<(), ApiError> {
        let mut page = 1;
        loop {
            metrics.requests.inc();
            let asked = Instant::now();
            let (users, has_next) = api.users(page).await.inspect_err(|_| {
                metrics.failures.inc();
            })?;
            for user in &users {
                if self.memory().users.len() >= self.shared.most {
                    return Ok(());
                }
                self.learn(user.pk, Some(user), asked);
            }
            if !has_next || users.is_empty() || page >= pages {
                return Ok(());
            }
            page += 1;
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait after so many answers in a row that did not come.
fn after(failures: usize) -> Duration {
    Duration::from_secs(AGAIN[failures.clamp(1, AGAIN.len()) - 1])
}

/// Who is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    One(i64),
    All,
}

impl Memory {
    /// Takes in an event that says that users or groups are others than was known, and says whether it was one.
    fn notice(&mut self, event: &Event<'_>, now: Instant) -> bool {
        let changed = event.context.model.as_ref().filter(|_| event.action.starts_with("model_"));
        let Some(model) = changed.filter(|model| model.app == "authentik_core") else { return false };
        let settled = now + AFTER_A_CHANGE;
        match (model.model_name.as_str(), model.pk.parse::<i64>()) {
            ("user", Ok(pk)) => {
                self.remove(pk);
                self.changes.user(pk, settled);
                self.want(pk, now);
            }
            // It does not say whose group it is now.
            ("group", _) => {
                self.users.clear();
                self.order.clear();
                self.bytes = 0;
                self.changes.all(settled);
                for (pk, due) in &mut self.wanted {
                    *due = self.changes.settled(*pk).map_or(*due, |settled| settled.max(*due));
                }
                self.wanted_all = Some(settled);
            }
            _ => return false,
        }
        true
    }

    /// What is known of a user, unless it is old.
    fn fresh(&self, pk: i64, now: Instant, keep: Duration) -> Option<Arc<Known>> {
        let entry = self.users.get(&pk).filter(|entry| now.duration_since(entry.at) < keep);
        entry.map(|entry| Arc::clone(&entry.known))
    }

    /// Has a user asked for, and not before the answer counts.
    fn want(&mut self, pk: i64, now: Instant) {
        let settled = self.changes.settled(pk).unwrap_or(now);
        if let Some((_, due)) = self.wanted.iter_mut().find(|(wanted, _)| *wanted == pk) {
            *due = settled.max(*due);
        } else if self.wanted.len() < WANTED {
            self.wanted.push_back((pk, settled.max(now)));
        }
    }

    /// Who is to be asked for first, and when.
    fn next_wanted(&self) -> Option<(Wanted, Instant)> {
        let one = self.wanted.iter().min_by_key(|(_, due)| *due).map(|(pk, due)| (Wanted::One(*pk), *due));
        let all = self.wanted_all.map(|due| (Wanted::All, due));
        // All at once first: that may be one question for many.
        all.into_iter().chain(one).min_by_key(|(_, due)| *due)
    }

    fn put(&mut self, pk: i64, known: Known, at: Instant) {
        self.remove(pk);
        self.bytes += known.bytes();
        self.order.push_back(pk);
        self.users.insert(pk, Entry { known: Arc::new(known), at });
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

impl Changes {
    fn user(&mut self, pk: i64, settled: Instant) {
        if self.of_users.len() >= CHANGED && !self.of_users.contains_key(&pk) {
            // Of too many: an answer that is on its way counts for nobody then, which costs a question.
            self.all(settled);
        }
        self.of_users.insert(pk, settled);
    }

    fn all(&mut self, settled: Instant) {
        self.of_users.clear();
        self.of_all = Some(settled);
    }

    fn settled(&self, pk: i64) -> Option<Instant> {
        self.of_users.get(&pk).copied().max(self.of_all)
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
        let event = Event::read(raw).unwrap();
        people.notice(&event);
        people.known(&event)
    }

    fn login(pk: i64) -> String {
        format!(r#"{{"pk":"0f0e0d0c0b0a49088706050403020100","action":"login","user":{{"pk":{pk}}}}}"#)
    }

    #[tokio::test]
    async fn the_tenant_is_an_attribute_or_a_groups_name_and_nobody_where_they_disagree() {
        let check = |attributes: &str, groups: &[(&str, &str)], expected: Option<&str>| {
            let people = People::new(&section());
            people.learn(5, Some(&user(5, attributes, groups)), Instant::now());
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
            people.learn(pk, Some(&user(pk, "{}", &[])), Instant::now());
        }
        assert!(known(&people, &login(1)).is_none() && known(&people, &login(4)).is_some());
        people.learn(9, None, Instant::now());
        assert_eq!(*known(&people, &login(9)).unwrap(), Known::default(), "Authentik has no such user");
        let bytes: usize = people.memory().users.values().map(|entry| entry.known.bytes()).sum();
        assert_eq!(people.memory().bytes, bytes);
    }

    fn changed(name: &str, pk: &str) -> String {
        format!(
            r#"{{"pk":"0f0e0d0c0b0a49088706050403020100","action":"model_updated","user":{{}},
            "context":{{"model":{{"app":"authentik_core","model_name":"{name}","pk":{pk}}}}}}}"#
        )
    }

    #[tokio::test]
    async fn a_change_of_a_user_or_a_group_has_what_was_known_forgotten_and_asked_for_again() {
        let people = People::new(&section());
        let wanted = || people.memory().wanted.iter().map(|(pk, _)| *pk).collect::<Vec<_>>();
        for pk in 1..=3 {
            people.learn(pk, Some(&user(pk, "{}", &[])), Instant::now());
        }
        assert!(known(&people, &login(1)).is_some() && wanted().is_empty());

        assert!(known(&people, &changed("user", "1")).is_none(), "what was is not what is");
        assert!(known(&people, &login(1)).is_none() && known(&people, &login(2)).is_some());
        assert_eq!(wanted(), [1]);
        known(&people, &changed("group", r#""g""#));
        assert!(known(&people, &login(2)).is_none() && known(&people, &login(3)).is_none());
        assert_eq!(wanted(), [1, 2, 3]);
        assert_eq!(people.memory().bytes, 0);
        assert_eq!(people.memory().next_wanted().unwrap().0, Wanted::All, "one question for many");
        assert!(people.memory().next_wanted().unwrap().1 > Instant::now(), "it is announced, and not made yet");
    }

    /// A change is announced before it is made: an answer to what was asked before is of no use, whenever it comes.
    #[tokio::test]
    async fn an_answer_that_a_change_has_overtaken_does_not_count() {
        let later = |milliseconds| Instant::now() + Duration::from_millis(milliseconds);
        for change in [changed("user", "1"), changed("group", r#""g""#)] {
            let people = People::new(&section());
            let asked = Instant::now();
            known(&people, &change);
            let one = user(1, "{}", &[("tenant_42_admins", "{}")]);
            assert!(!people.learn(1, Some(&one), asked), "{change}");
            assert!(!people.learn(1, Some(&one), asked + Duration::from_millis(100)), "{change}");
            assert!(known(&people, &login(1)).is_none() && people.memory().wanted.len() == 1);
            assert!(people.learn(1, Some(&one), later(1100)));
            assert!(known(&people, &login(1)).is_some());
        }
        let people = People::new(&section());
        let asked = Instant::now();
        for pk in 0..=i64::try_from(CHANGED).unwrap() {
            known(&people, &changed("user", &pk.to_string()));
        }
        assert!(!people.learn(0, None, asked), "of too many");
        assert!(people.memory().changes.of_users.len() <= CHANGED);
    }

    #[tokio::test]
    async fn what_is_old_is_not_used_and_asked_for_again() {
        let people = People::new(&EnrichmentSection { cache_seconds: 0.05, ..section() });
        let one = user(1, "{}", &[("tenant_42_admins", "{}")]);
        people.learn(1, Some(&one), Instant::now());
        let deadline = Instant::now() + Duration::from_secs(30);
        while known(&people, &login(1)).is_some() {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        assert_eq!(people.memory().wanted.len(), 1);
    }

    #[tokio::test]
    async fn where_nothing_is_asked_for_nobody_is() {
        let people = People::new(&EnrichmentSection::default());
        assert!(known(&people, &login(1)).is_none() && people.memory().wanted.is_empty());
    }
}
