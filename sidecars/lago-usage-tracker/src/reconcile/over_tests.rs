//! Periods and subscriptions that are over, against the stand-in for Lago over the wire.
#![allow(clippy::unwrap_used)]

use kit::clock::SystemClock;
use kit::secret::Secret;
use kit_journal::engine::Action;
use kit_journal::{JournalSection, JournalTask};
use kit_lago::LagoServer;
use kit_lago::api::{BillableMetric, Subscription};
use kit_lago::stand_in::billing::{self, AggregationType, Invoice, Metric, Profile};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

use super::*;
use crate::sender;

mod forgotten;

const KEY: &str = "lago-api-key-0123456789";

struct Bench {
    lago: LagoServer,
    reconciler: Reconciler,
    client: reqwest::Client,
    _task: JournalTask,
    _directory: TempDir,
}

fn name(subscription: &str) -> Name {
    (subscription.to_owned(), "visits".to_owned())
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn period(from: &str, to: &str) -> Period {
    Period { from: time(from), to: time(to) }
}

impl Bench {
    /// Subscriptions, and when those that have ended did so.
    async fn new(profile: Profile, subscriptions: &[(&str, Option<&str>)]) -> Self {
        let lago = LagoServer::start(profile, Secret::from(KEY.to_owned())).await.unwrap();
        lago.put_metric(Metric::new("visits", AggregationType::Count, None));
        let started: jiff::Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        for (id, ended) in subscriptions {
            lago.put_subscription(billing::Subscription::active(id, "customer", "plan", started));
            if let Some(ended) = ended {
                lago.end_subscription(id, ended.parse().unwrap());
            }
        }
        let known = subscriptions.iter().map(|(id, ended)| Subscription {
            external_id: (*id).to_owned(),
            external_customer_id: "customer".to_owned(),
            plan_code: Some("plan".to_owned()),
            started_at: Some(time("2024-01-01T00:00:00Z")),
            terminated_at: ended.map(time),
            current_billing_period_started_at: None,
            current_billing_period_ending_at: None,
        });
        let metric = BillableMetric {
            code: "visits".to_owned(),
            aggregation_type: Aggregation::CountAgg,
            field_name: None,
            expression: None,
            recurring: false,
            rounding_function: None,
        };
        let clock: SharedClock = Arc::new(SystemClock);
        let catalogue = Catalogue::new(vec![metric], known.collect(), clock.now());
        let directory = TempDir::new().unwrap();
        let section = JournalSection { path: directory.path().join("j.db"), ..JournalSection::default() };
        let (journal, task) = Journal::open(&section, Arc::clone(&clock), &mut Registry::default()).unwrap();
        let action = Action::Register { sink: sender::SINK.to_owned() };
        journal.act(vec![action]).await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let reconciler = Reconciler {
            api: LagoApi::new(client.clone(), &lago.url(), &Secret::from(KEY.to_owned())).unwrap(),
            books: Arc::new(Books::new(journal.clone())),
            journal,
            alerts: Alerts::new(None, Arc::clone(&clock)),
            clock,
            known: Known::told(Some(catalogue), None).1,
            section: ReconcileSection::default(),
            metrics: UsageMetrics::default(),
            asked: Arc::default(),
            in_vain: Mutex::default(),
            looked_to_forget: Mutex::default(),
        };
        Self { lago, reconciler, client, _task: task, _directory: directory }
    }

    /// Lago has it, from here or from somebody else.
    async fn report(&self, subscription: &str, transaction: &str, at: &str) {
        let event = serde_json::json!({ "event": { "transaction_id": transaction, "code": "visits",
            "external_subscription_id": subscription, "timestamp": time(at).as_millis() / 1_000 } });
        let url = format!("{}/api/v1/events", self.lago.url());
        let answer = self.client.post(url).bearer_auth(KEY).json(&event).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }

    fn book(&self, subscription: &str, at: &str) {
        self.book_as_of(subscription, at, self.reconciler.clock.now());
    }

    fn book_as_of(&self, subscription: &str, at: &str, booked_at: Timestamp) {
        self.reconciler.books.ledger().book(&name(subscription), time(at), Some(Quantity::whole(1)), booked_at);
    }

    fn set_period(&self, subscription: &str, period: Period) {
        self.reconciler.books.ledger().set_period(subscription, period);
    }

    async fn compare(&self, all: bool) -> Vec<Drift> {
        let mut round = Round::default();
        self.reconciler.compare_ended(all, Duration::ZERO, &mut round).await;
        round.drifted
    }

    /// Events missing, and what Lago has not answered.
    fn missing(&self) -> (u64, Option<String>) {
        let results = self.reconciler.books.results();
        (results.missing.0, results.failed.clone())
    }

    fn stands(&self, subscription: &str) -> Option<(State, u64, u64)> {
        let results = self.reconciler.books.results();
        let compared = &results.ended.get(&name(subscription))?.compared;
        Some((compared.state, compared.missing_events, compared.surplus_events))
    }
}

const OCTOBER: (&str, &str) = ("2026-10-01T00:00:00Z", "2026-10-31T23:59:59Z");
const NOVEMBER: (&str, &str) = ("2026-11-01T00:00:00Z", "2026-11-30T23:59:59Z");

fn invoice(subscription: &str, (from, to): (&str, &str)) -> Invoice {
    Invoice::draft(subscription, from.parse().unwrap(), to.parse().unwrap())
}

#[tokio::test]
async fn a_period_that_has_ended_is_compared_once_its_invoice_is_final() {
    for profile in Profile::ALL {
        let bench = Bench::new(profile, &[("s", None)]).await;
        for n in 0..3 {
            let at = format!("2026-10-0{}T12:00:00Z", n + 1);
            bench.report("s", &format!("t-{n}"), &at).await;
            bench.book("s", &at);
        }
        bench.set_period("s", period(OCTOBER.0, OCTOBER.1));
        assert!(bench.compare(true).await.is_empty());
        assert_eq!(bench.stands("s"), None, "it is the current one");
        bench.set_period("s", period(NOVEMBER.0, NOVEMBER.1));

        // No invoice, then a draft.
        let draft = invoice("s", OCTOBER);
        for _ in 0..2 {
            assert!(bench.compare(true).await.is_empty());
            assert_eq!(bench.stands("s"), Some((State::Settling, 0, 0)), "{profile:?}");
            bench.lago.put_invoice(draft.clone());
        }
        let asked = bench.lago.counts().requests;
        bench.compare(false).await;
        assert_eq!(bench.lago.counts().requests, asked, "Lago makes invoices once an hour");
        bench.lago.put_invoice(Invoice { finalized_at: Some(jiff::Timestamp::now()), ..draft });
        assert!(bench.compare(true).await.is_empty());
        assert_eq!(bench.stands("s"), Some((State::Equal, 0, 0)), "{profile:?}");

        // Too late for the invoice: Lago confirms it, and nobody pays for it.
        bench.report("s", "late", "2026-10-31T12:00:00Z").await;
        bench.book("s", "2026-10-31T12:00:00Z");
        let drifted = bench.compare(false).await;
        assert_eq!(bench.stands("s"), Some((State::Missing, 1, 0)), "{profile:?}");
        let [drift] = drifted.as_slice() else { panic!("{} drifts", drifted.len()) };
        assert_eq!((drift.booked.period, drift.booked.sum.events), (period(OCTOBER.0, OCTOBER.1), 4));
        let asked = bench.lago.counts().requests;
        assert!(bench.compare(false).await.is_empty(), "told once");
        assert_eq!(bench.lago.counts().requests, asked);
        bench.reconciler.finish(Timestamp::default(), &Unanswered::default());
        assert_eq!(bench.reconciler.books.results().missing, (1, 1));
    }
}

/// Late usage that was billed by hand hides no drift: it is missing no more, across a restart too, until more is.
#[tokio::test]
async fn what_a_person_has_accepted_is_missing_no_more_until_more_is() {
    let bench = Bench::new(Profile::V1_39, &[("s", None)]).await;
    let late = async |n: u32| {
        bench.report("s", &format!("late-{n}"), "2026-10-31T12:00:00Z").await;
        bench.book("s", "2026-10-31T12:00:00Z");
    };
    bench.report("s", "t", "2026-10-02T12:00:00Z").await;
    bench.book("s", "2026-10-02T12:00:00Z");
    bench.set_period("s", period(OCTOBER.0, OCTOBER.1));
    bench.set_period("s", period(NOVEMBER.0, NOVEMBER.1));
    let draft = invoice("s", OCTOBER);
    bench.lago.put_invoice(Invoice { finalized_at: Some(jiff::Timestamp::now()), ..draft });
    let books = &bench.reconciler.books;
    let accept = async |reason| {
        let now = bench.reconciler.clock.now();
        books.accept(("s", None), (reason, "me".to_owned()), now).await.unwrap()
    };
    bench.compare(true).await;
    assert!(accept("nothing is missing").await.is_empty());
    late(1).await;
    assert_eq!(bench.compare(false).await.len(), 1);

    assert_eq!(accept("billed by hand").await, [(name("s"), 1)]);
    assert_eq!(bench.stands("s"), Some((State::Accepted, 1, 0)));
    assert!(bench.compare(true).await.is_empty(), "it is told no more");
    bench.reconciler.finish(Timestamp::default(), &Unanswered::default());
    assert_eq!(books.results().missing, (0, 0));
    let audit = bench.reconciler.journal.read(|reader| reader.audit(None, 10)).await.unwrap();
    assert!(format!("{audit:?}").contains("billed by hand"), "{audit:?}");

    // As after a restart.
    let changed = std::iter::once(name("s")).collect();
    let values = books.ledger().take_record(&changed);
    let values = values.into_iter().map(|(name, value)| Action::Remember { name, value });
    bench.reconciler.journal.act(values.collect()).await.unwrap();
    *books.results() = Results::default();
    books.accepted().clear();
    books.lead().await.unwrap();
    assert!(bench.compare(true).await.is_empty());
    assert_eq!(bench.stands("s"), Some((State::Accepted, 1, 0)));

    late(2).await;
    assert_eq!(bench.compare(false).await.len(), 1, "that is more than was accepted");
    assert_eq!(bench.stands("s"), Some((State::Missing, 2, 0)));
    assert_eq!(accept("these too").await, [(name("s"), 2)]);
    assert_eq!(bench.stands("s"), Some((State::Accepted, 2, 0)));
}

/// Lago's clock makes invoices once an hour; one that has stopped is seen by nothing else.
#[tokio::test]
async fn a_period_without_an_invoice_is_told_until_lago_makes_one() {
    for profile in Profile::ALL {
        let bench = Bench::new(profile, &[("s", None)]).await;
        let uninvoiced = || past::uninvoiced(bench.reconciler.books.results().ended.values());
        bench.report("s", "t", "2026-10-02T12:00:00Z").await;
        bench.book("s", "2026-10-02T12:00:00Z");
        bench.set_period("s", period(OCTOBER.0, OCTOBER.1));
        bench.compare(true).await;
        assert_eq!(uninvoiced(), Duration::ZERO, "it is the current one");

        bench.set_period("s", period(NOVEMBER.0, NOVEMBER.1));
        bench.compare(true).await;
        let first = uninvoiced();
        let since = bench.reconciler.clock.now().since(time(OCTOBER.1));
        assert!(first > Duration::ZERO && since.saturating_sub(first) < Duration::from_secs(60), "{first:?}");

        // A Lago that does not answer has not said that there is one, nor that there still is none.
        bench.lago.set_faults(rule(billing::Effect::Answer(500), billing::When::Always));
        bench.compare(true).await;
        assert_eq!(uninvoiced(), first);
        bench.lago.set_faults(billing::Faults::default());

        bench.lago.put_invoice(invoice("s", OCTOBER));
        bench.compare(true).await;
        assert_eq!(uninvoiced(), Duration::ZERO, "a draft is one");
    }
}

#[tokio::test]
async fn the_last_period_of_a_subscription_that_has_ended_is_compared_too() {
    let bench = Bench::new(Profile::V1_39, &[("ended", Some("2026-11-10T00:00:00Z")), ("upgraded", None)]).await;
    for subscription in ["ended", "upgraded"] {
        bench.book(subscription, "2026-11-05T00:00:00Z");
        bench.set_period(subscription, period(NOVEMBER.0, NOVEMBER.1));
    }
    let ended = Invoice {
        finalized_at: Some(jiff::Timestamp::now()),
        ..invoice("ended", (NOVEMBER.0, "2026-11-10T00:00:00Z"))
    };
    bench.report("ended", "t", "2026-11-05T00:00:00Z").await;
    bench.report("ended", "theirs", "2026-11-06T00:00:00Z").await;
    bench.lago.put_invoice(Invoice { finalized_at: Some(jiff::Timestamp::now()), ..ended });
    // What is known of a part of a period is too little to be compared.
    bench.set_period("upgraded", period("2026-11-08T00:00:00Z", NOVEMBER.1));
    let upgraded = invoice("upgraded", (NOVEMBER.0, "2026-11-07T23:59:59Z"));
    bench.lago.put_invoice(Invoice { finalized_at: Some(jiff::Timestamp::now()), ..upgraded });

    assert!(bench.compare(false).await.is_empty());

    assert_eq!(bench.stands("ended"), Some((State::Surplus, 0, 1)));
    assert_eq!(bench.stands("upgraded"), None);
}

/// A key that may not read invoices: nothing is said, and nothing else fails for it.
#[tokio::test]
async fn an_invoice_that_lago_does_not_tell_is_unknown() {
    let bench = Bench::new(Profile::V1_16, &[("s", None)]).await;
    bench.book("s", "2026-10-05T00:00:00Z");
    bench.set_period("s", period(OCTOBER.0, OCTOBER.1));
    bench.set_period("s", period(NOVEMBER.0, NOVEMBER.1));
    let refused = billing::Fault::new(billing::Effect::Answer(403), billing::When::Always).on(billing::On::Reading);
    bench.lago.set_faults(billing::Faults { rules: vec![refused], ..billing::Faults::default() });
    assert!(bench.compare(true).await.is_empty());
    assert_eq!(bench.stands("s"), Some((State::Unknown, 0, 0)));
    let away = billing::Fault::new(billing::Effect::Answer(503), billing::When::Always).on(billing::On::Reading);
    bench.lago.set_faults(billing::Faults { rules: vec![away], ..billing::Faults::default() });
    let mut round = Round::default();
    bench.reconciler.compare_ended(true, Duration::ZERO, &mut round).await;
    assert_eq!(
        round.unanswered.sentence().as_deref(),
        Some("Lago has not answered 1 question: Lago answered status 503")
    );
}

/// A charge that has counted nothing has no fee, so that nothing on the invoice says that it was forgotten.
#[tokio::test]
async fn a_period_of_which_lago_has_billed_nothing_is_missing_where_its_plan_charges_it_afterwards() {
    let metric = || Metric::new("visits", AggregationType::Count, None);
    for (charge, code, expected) in [
        (metric(), "visits", (State::Missing, 1, 0)),
        (Metric { pay_in_advance: true, ..metric() }, "visits", (State::Unknown, 0, 0)),
        (Metric::new("others", AggregationType::Count, None), "others", (State::NotCharged, 0, 0)),
    ] {
        let bench = Bench::new(Profile::V1_39, &[("s", None)]).await;
        if code == "visits" {
            bench.lago.put_metric(charge);
        } else {
            bench.lago.remove_metric("visits");
        }
        bench.book("s", "2026-10-05T00:00:00Z");
        bench.set_period("s", period(OCTOBER.0, OCTOBER.1));
        bench.set_period("s", period(NOVEMBER.0, NOVEMBER.1));
        bench.lago.put_invoice(Invoice { finalized_at: Some(jiff::Timestamp::now()), ..invoice("s", OCTOBER) });

        let drifted = bench.compare(true).await;

        assert_eq!(bench.stands("s"), Some(expected));
        assert_eq!(drifted.len(), usize::from(expected.0 == State::Missing));
        let asked = bench.lago.counts().requests;
        bench.compare(false).await;
        assert_eq!(bench.lago.counts().requests, asked, "that was Lago's last word");
    }
}

/// A key that may not read plans, or a Lago that does not answer: it is asked again.
#[tokio::test]
async fn what_is_on_no_invoice_is_unknown_as_long_as_lago_does_not_tell_its_plan() {
    let bench = Bench::new(Profile::V1_39, &[("s", None)]).await;
    bench.book("s", "2026-10-05T00:00:00Z");
    bench.set_period("s", period(OCTOBER.0, OCTOBER.1));
    bench.set_period("s", period(NOVEMBER.0, NOVEMBER.1));
    bench.lago.put_invoice(Invoice { finalized_at: Some(jiff::Timestamp::now()), ..invoice("s", OCTOBER) });
    for status in [403, 500] {
        // What is on the invoices, how it stands, and then the plan.
        let third =
            billing::Fault::new(billing::Effect::Answer(status), billing::When::Nth(3)).on(billing::On::Reading);
        bench.lago.set_faults(billing::Faults { rules: vec![third], ..billing::Faults::default() });
        assert!(bench.compare(true).await.is_empty());
        assert_eq!(bench.stands("s"), Some((State::Unknown, 0, 0)), "{status}");
    }
    assert_ne!(bench.reconciler.books.results().ended[&name("s")].invoice, past::Invoice::Final);
    assert_eq!(bench.compare(true).await.len(), 1);
}

/// Subscriptions of which something is missing since this period began.
async fn missing_now(subscriptions: &[&str]) -> Bench {
    let known: Vec<(&str, Option<&str>)> = subscriptions.iter().map(|own| (*own, None)).collect();
    let bench = Bench::new(Profile::V1_39, &known).await;
    for subscription in subscriptions {
        bench.book(subscription, &jiff::Timestamp::now().to_string());
    }
    let round = bench.reconciler.compare_all(true, Duration::from_millis(1)).await;
    bench.reconciler.finish(Timestamp::default(), &round.unanswered);
    assert_eq!(round.drifted.len(), subscriptions.len());
    assert_eq!(bench.missing(), (subscriptions.len() as u64, None));
    bench
}

fn rule(effect: billing::Effect, when: billing::When) -> billing::Faults {
    let rules = vec![billing::Fault::new(effect, when).on(billing::On::Reading)];
    billing::Faults { rules, ..billing::Faults::default() }
}

/// One subscription of which Lago gives no answer keeps nobody else from being compared, and what was missing of it stays.
#[tokio::test]
async fn a_question_without_an_answer_ends_no_comparison_and_no_alarm() {
    use billing::{Effect, When};
    let bench = missing_now(&["a", "b", "c"]).await;
    let answers = [500, 502, 504, 405].map(Effect::Answer);
    let others = [Effect::Reset, Effect::DoneThenClosed, Effect::TooManyRequests { limit: 1, reset_seconds: 1 }];
    for effect in answers.into_iter().chain(others) {
        bench.lago.set_faults(rule(effect, When::Nth(2)));
        let round = bench.reconciler.compare_all(true, Duration::from_millis(1)).await;
        bench.reconciler.finish(bench.reconciler.clock.now(), &round.unanswered);

        let drifted: Vec<&str> = round.drifted.iter().map(|drift| drift.name.0.as_str()).collect();
        assert_eq!(drifted, ["a", "c"], "{effect:?}");
        let (missing, failed) = bench.missing();
        assert!(missing == 3 && failed.unwrap().starts_with("Lago has not answered 1 question: "), "{effect:?}");
    }
    bench.lago.set_faults(billing::Faults::default());
    for subscription in ["a", "b", "c"] {
        bench.report(subscription, subscription, &jiff::Timestamp::now().to_string()).await;
    }
    let round = bench.reconciler.compare_all(true, Duration::from_millis(1)).await;
    bench.reconciler.finish(bench.reconciler.clock.now(), &round.unanswered);
    assert_eq!((bench.missing(), round.drifted.len()), ((0, None), 0));
}

#[tokio::test]
async fn a_lago_that_answers_nobody_is_left_alone_and_no_comparison_counts() {
    let bench = missing_now(&["a", "b", "c", "d", "e"]).await;
    for (effect, questions) in [(billing::Effect::Answer(503), 3), (billing::Effect::Answer(401), 1)] {
        bench.lago.set_faults(rule(effect, billing::When::Always));
        let before = bench.lago.counts().requests;
        let round = bench.reconciler.compare_all(true, Duration::from_millis(1)).await;
        bench.reconciler.finish(bench.reconciler.clock.now(), &round.unanswered);
        assert_eq!(bench.lago.counts().requests - before, questions);
        let (missing, failed) = bench.missing();
        assert!(missing == 5 && failed.unwrap().contains("and was left alone"));
        assert_eq!(bench.reconciler.books.results().compared_at, Some(Timestamp::default()));
    }
}

#[tokio::test]
async fn every_drift_is_told_however_many_there_are() {
    let mut bench = Bench::new(Profile::V1_39, &[]).await;
    let journal = bench.reconciler.journal.clone();
    bench.reconciler.alerts = Alerts::new(Some(journal.clone()), Arc::clone(&bench.reconciler.clock));
    let at = Timestamp::default();
    let compared = Compared { missing_events: 1, ..Compared::of_state(State::Missing, at) };
    bench.book("s-000", "2026-11-05T00:00:00Z");
    bench.set_period("s-000", period(NOVEMBER.0, NOVEMBER.1));
    let booked = bench.reconciler.books.ledger().pair(&name("s-000")).unwrap().current.clone().unwrap();
    let drifted: Vec<Drift> = (0..TOLD_AT_ONCE + 50)
        .map(|n| Drift { name: name(&format!("s-{n:03}")), booked: booked.clone(), compared: compared.clone() })
        .collect();
    for told in [TOLD_AT_ONCE, TOLD_AT_ONCE + 50, TOLD_AT_ONCE + 50] {
        bench.reconciler.tell_all(&drifted).await;
        // The tail grows after the answer; this is answered after both.
        journal.known("", "").await.unwrap();
        assert_eq!(*journal.tail().borrow(), i64::try_from(told).unwrap());
    }
}

/// A plan that is upgraded: what Lago counts since then is in what was booked before, and nobody else's.
#[tokio::test]
async fn what_was_booked_before_an_upgrade_was_known_is_no_surplus() {
    let bench = Bench::new(Profile::V1_39, &[("s", None)]).await;
    let now = jiff::Timestamp::now();
    let (began, end) = (now - jiff::SignedDuration::from_hours(2), now + jiff::SignedDuration::from_hours(240));
    let seconds = |at: jiff::Timestamp| at.round(jiff::Unit::Second).unwrap().to_string();
    let since = seconds(now - jiff::SignedDuration::from_hours(1));
    for n in 0..3 {
        bench.report("s", &format!("t-{n}"), &since).await;
        bench.book("s", &since);
    }
    bench.set_period("s", period("2026-01-01T00:00:00Z", &seconds(end)));
    let upgraded = billing::Subscription {
        current_billing_period_started_at: Some(began.round(jiff::Unit::Second).unwrap()),
        current_billing_period_ending_at: Some(end),
        ..billing::Subscription::active("s", "customer", "larger", began)
    };
    bench.lago.end_subscription("s", began);
    bench.lago.put_subscription(upgraded);
    let compared = async || {
        bench.reconciler.compare_all(true, Duration::from_millis(1)).await;
        let results = bench.reconciler.books.results();
        let compared = &results.pairs[&name("s")];
        (compared.state, compared.surplus_events)
    };

    assert_eq!(compared().await, (State::Uncertain, 3));
    bench.report("s", "theirs", &since).await;
    assert_eq!(compared().await, (State::Surplus, 4), "more than can be ours");
}
