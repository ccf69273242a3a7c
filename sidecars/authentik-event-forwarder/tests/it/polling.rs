//! Events that no webhook brought.

use std::time::{Duration, Instant};

use kit_authentik::blueprint::Authentication;
use kit_authentik::emulator::{Fault, Generation, Mapping, NewEvent, Notifier, NotifierOptions, Slow, Trouble, User};

use crate::bench::*;

/// Microseconds since the epoch, so many seconds ago.
fn ago(seconds: i64) -> i64 {
    jiff::Timestamp::now().as_microsecond() - seconds * 1_000_000
}

const SINCE: (&str, &str) = ("SIDECAR_POLL__SINCE", "2020-01-01T00:00:00Z");

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_webhook_is_there_within_an_interval_and_both_give_one() {
    let authentik = authentik(Generation::V2026_2).await;
    let before = authentik.happen(NewEvent::login(&ada()).at_micros(ago(30)));
    let bench = Bench::beside(&authentik, &[]).await;
    bench.wait_metric("authentik_api_requests_total", &[], 4).await;

    let lost = authentik.happen(NewEvent::login(&ada()));
    bench.wait_delivered(&[lost]).await;
    let mapping = Mapping::Blueprint(Authentication::Hmac, secret());
    let notifier = Notifier::start(authentik.state(), NotifierOptions::new(bench.webhook_url(), mapping));
    let both = authentik.happen(NewEvent::login(&ada()));
    assert!(notifier.quiet(DEADLINE).await);
    bench.wait_delivered(&[lost, both]).await;
    let polls = bench.metric("authentik_api_requests_total", &[]).await;
    bench.wait_metric("authentik_api_requests_total", &[], polls + 3).await;

    assert_eq!(bench.accepted().await, 2, "{before}: from now on");
    assert_eq!(bench.types(), [("authentik.login".to_owned(), 2)].into());
    let by = |by: &'static str| [("by", by), ("result", "accepted")];
    let (polled, sent) = (
        bench.metric("authentik_events_total", &by("poll")).await,
        bench.metric("authentik_events_total", &by("webhook")).await,
    );
    assert_eq!(polled + sent, 2);
    assert!(polled >= 1);
    let (status, ready) = bench.readyz().await;
    assert_eq!((status, ready["parts"]["authentik"].as_str()), (200, Some("ready")));
}

#[tokio::test(flavor = "multi_thread")]
async fn years_of_events_are_read_oldest_first_and_a_kill_in_between_loses_none() {
    for generation in [Generation::V2024_10, Generation::V2026_8] {
        let authentik = authentik(generation).await;
        let count = 2_345;
        let pks: Vec<_> =
            (0..count).map(|n| authentik.happen(NewEvent::login(&ada()).at_micros(ago(100_000 - n * 7)))).collect();
        let mut bench = Bench::beside(&authentik, &[SINCE]).await;
        for _ in 0..3 {
            bench.wait_metric("authentik_events_total", &[("by", "poll")], 300).await;
            bench.restart(&[]).await;
            bench.wait_metric("authentik_api_requests_total", &[], 1).await;
        }
        bench.wait_delivered(&pks).await;

        let stored = bench.wait_api("/api/v1/statistics", |s| s["accepted"] == count).await;
        assert_eq!(stored["accepted"], count, "{generation:?}");
        let mut order = bench.gateway.received();
        // One subject: the first deliveries are in the order of what happened.
        order.sort_by_key(|received| received.number);
        let mut seen = std::collections::BTreeSet::new();
        let first: Vec<_> = order.into_iter().filter_map(|r| r.event_id).filter(|id| seen.insert(id.clone())).collect();
        assert!(first == pks.iter().map(|pk| id(*pk)).collect::<Vec<_>>(), "in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_and_go_while_pages_are_read_leave_no_gap() {
    // Thousands in one millisecond as well: what orders them are microseconds.
    for microseconds in [7_000_000, 1] {
        no_gap(microseconds).await;
    }
}

async fn no_gap(apart: i64) {
    let authentik = authentik(Generation::V2026_2).await;
    let mortal = User::new(66, "mortal");
    let (mut kept, count) = (Vec::new(), 4_000);
    let begin = ago(100_000);
    for n in 0..count {
        let user = if n % 10 == 3 { &mortal } else { &ada() };
        let pk = authentik.happen(NewEvent::login(user).at_micros(begin + n * apart));
        if n % 10 != 3 {
            kept.push(pk);
        }
    }
    let bench = Bench::beside(&authentik, &[SINCE]).await;
    bench.wait_metric("authentik_events_total", &[("by", "poll")], 200).await;
    // A user is deleted with all its events, old ones expire, and many new ones come, all while pages are read.
    authentik.delete_user(66);
    let state = std::sync::Arc::clone(authentik.state());
    let coming = tokio::spawn(async move {
        let mut new = Vec::new();
        for _ in 0..600 {
            new.push(state.happen(NewEvent::login(&User::new(5, "ada"))));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        new
    });
    kept.extend(coming.await.unwrap());
    let deadline = Instant::now() + DEADLINE;
    loop {
        let got: std::collections::BTreeSet<_> =
            bench.gateway.received().into_iter().filter_map(|received| received.event_id).collect();
        let missing = kept.iter().filter(|pk| !got.contains(&id(**pk))).count();
        if missing == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{missing} missing");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_can_be_seen_late_is_found_in_the_overlap() {
    let authentik = authentik(Generation::V2024_10).await;
    // Longer than it takes a busy machine to get the others through.
    let bench = Bench::beside(&authentik, &[("SIDECAR_POLL__OVERLAP_SECONDS", "600")]).await;
    bench.wait_metric("authentik_api_requests_total", &[], 3).await;
    let late = authentik.begin(NewEvent::login(&ada()).at_micros(ago(3)));
    let early: Vec<_> = (0..150).map(|_| authentik.happen(NewEvent::login(&ada()).at_micros(ago(2)))).collect();
    bench.wait_delivered(&early).await;

    authentik.commit(late);

    bench.wait_delivered(&[&early[..], &[late]].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_authentik_answers_webhooks_are_taken_and_events_are_read_when_it_is_well() {
    let authentik = authentik(Generation::V2024_10).await;
    authentik.set_starting(true);
    let bench = Bench::beside(&authentik, &[SINCE]).await;
    let said = |ready: &serde_json::Value| ready["parts"]["authentik"].as_str().unwrap_or_default().to_owned();
    let wait_said = async |text: &str| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (status, ready) = bench.readyz().await;
            assert_eq!(status, 200);
            if said(&ready).contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{text}: {ready}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let expect_webhook = async |n: u32| {
        let body = envelope(&event(&format!("{n:032x}"), "login"), "");
        assert_eq!(bench.send(&body).await.status, 200);
    };
    wait_said("Authentik is starting").await;
    expect_webhook(1).await;
    authentik.set_starting(false);
    wait_said("ready").await;
    authentik.forbid(&["events/events/"]);
    wait_said("authentik_events.view_event").await;
    expect_webhook(2).await;
    authentik.forbid(&[]);
    wait_said("ready").await;
    authentik.configure(|configuration| configuration.rotate_service_token("another-token"));
    wait_said("AUTHENTIK_TOKEN is refused").await;
    let token = bench_token();
    authentik.configure(|configuration| configuration.rotate_service_token(&token));
    wait_said("ready").await;
    let missed = authentik.happen(NewEvent::login(&ada()));
    for fault in [
        Fault::Close,
        Fault::Cut,
        Fault::Answer(500),
        Fault::TooMany(1),
        Fault::Answer(200),
        Fault::Answer(301),
        Fault::Wait(Duration::from_millis(300)),
    ] {
        let failures = bench.metric("authentik_api_failures_total", &[]).await;
        authentik.fail_next([fault]);
        if !matches!(fault, Fault::Wait(_)) {
            bench.wait_metric("authentik_api_failures_total", &[], failures + 1).await;
        }
        wait_said("ready").await;
    }
    let expected = [1_u128, 2].map(kit_authentik::event::EventPk::from_u128);
    bench.wait_delivered(&[&expected[..], &[missed]].concat()).await;
}

/// The token that the stand-in begins with.
fn bench_token() -> String {
    kit_authentik::emulator::AuthentikState::new(Generation::V2024_10).token()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_wanted_is_asked_for_and_taken_in_either_dialect() {
    for generation in [Generation::V2024_10, Generation::V2026_2] {
        for (include, expected) in [("login", 1), ("login,logout", 2), ("log*", 3), ("custom_mine", 1)] {
            let authentik = authentik(generation).await;
            for action in ["login", "login_failed", "logout", "custom_mine", "policy_exception"] {
                authentik.happen(NewEvent::of(&ada(), action, serde_json::json!({})));
            }
            let bench = Bench::beside(&authentik, &[SINCE, ("SIDECAR_EVENTS__INCLUDE", include)]).await;
            bench.gateway.wait_for(expected, DEADLINE).await.unwrap();
            bench.wait_metric("authentik_api_requests_total", &[], 5).await;
            assert_eq!(bench.accepted().await, expected as u64, "{generation:?} {include}: {:?}", bench.types());
        }
    }
}

/// What happened before the first start is not taken either when more is wanted later.
#[tokio::test(flavor = "multi_thread")]
async fn wanting_more_does_not_bring_what_was_before_the_first_start() {
    for generation in [Generation::V2024_10, Generation::V2026_2] {
        let authentik = authentik(generation).await;
        for _ in 0..3 {
            authentik.happen(NewEvent::login(&ada()).at_micros(ago(172_800)));
        }
        let mut bench = Bench::beside(&authentik, &[("SIDECAR_EVENTS__INCLUDE", "logout")]).await;
        bench.wait_metric("authentik_api_requests_total", &[], 4).await;
        bench.wait_said("ready").await;
        let since = authentik.happen(NewEvent::login(&ada()));
        bench.restart(&[("SIDECAR_EVENTS__INCLUDE", "*")]).await;
        let last = authentik.happen(NewEvent::login(&ada()));

        bench.wait_delivered(&[since, last]).await;

        assert_eq!(bench.accepted().await, 2, "{generation:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_between_the_first_start_and_the_first_answer_are_taken() {
    let authentik = authentik(Generation::V2026_2).await;
    authentik.happen(NewEvent::login(&ada()).at_micros(ago(30)));
    authentik.set_starting(true);
    let mut bench = Bench::beside(&authentik, &[]).await;
    bench.wait_metric("authentik_api_failures_total", &[], 1).await;
    let while_away = authentik.happen(NewEvent::login(&ada()));
    bench.restart(&[]).await;
    bench.wait_metric("authentik_api_failures_total", &[], 1).await;
    let last = authentik.happen(NewEvent::login(&ada()));

    authentik.set_starting(false);

    bench.wait_delivered(&[while_away, last]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_is_parked_once_and_said_once() {
    let authentik = authentik(Generation::V2026_2).await;
    let no_action = |seconds| NewEvent::of(&ada(), &"x".repeat(201), serde_json::json!({})).at_micros(ago(seconds));
    authentik.happen(no_action(1_000));
    let mut bench = Bench::beside(&authentik, &[]).await;
    bench.wait_said("ready").await;
    let pk = authentik.happen(no_action(0));
    let next = authentik.happen(NewEvent::login(&ada()));

    bench.wait_delivered(&[next]).await;
    bench.wait_api("/api/v1/statistics", |s| s["sinks"][0]["parked"] == 1).await;
    let asked = bench.metric("authentik_api_requests_total", &[]).await;
    bench.wait_metric("authentik_api_requests_total", &[], asked + 3).await;

    assert_eq!(bench.accepted().await, 2);
    let parked = bench.api("/api/v1/deliveries?state=parked").await["deliveries"][0].clone();
    assert_eq!((&parked["event_id"], &parked["type"]), (&id(pk).into(), &"authentik.unreadable".into()), "{parked}");
    assert!(
        parked["reason"].as_str().unwrap().contains("its action is missing, or has more than 200 bytes"),
        "{parked}"
    );
    assert_eq!(bench.metric("authentik_api_unreadable_total", &[]).await, 1, "once, and none from before the start");
    // Nor is it said again where it is read again.
    bench.restart(&[]).await;
    bench.wait_metric("authentik_events_total", &[("by", "poll"), ("result", "duplicate")], 2).await;
    assert_eq!(bench.metric("authentik_api_unreadable_total", &[]).await, 0);
}

/// One row spoils its page, again and again: what lies behind it is read all the same, and what lies in it is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_authentik_cannot_give_is_stepped_over_and_said() {
    let authentik = authentik(Generation::V2024_10).await;
    let mut bench = Bench::beside(&authentik, &[("SIDECAR_POLL__OVERLAP_SECONDS", "60")]).await;
    bench.wait_said("ready").await;
    let before = authentik.happen(NewEvent::login(&ada()).at_micros(ago(5)));
    bench.wait_delivered(&[before]).await;
    // Not to be seen before it is spoiled.
    let spoiled = authentik.begin(NewEvent::login(&ada()).at_micros(ago(4)));
    authentik.spoil(spoiled);
    authentik.commit(spoiled);
    let after: Vec<_> = (0..7).map(|_| authentik.happen(NewEvent::login(&ada()))).collect();

    bench.wait_delivered(&[&[before][..], &after].concat()).await;
    bench.wait_said("cannot give 1 of its latest events").await;
    bench.wait_said(&format!("between event {before} of ")).await;
    assert_eq!(bench.metric("authentik_api_skipped_total", &[]).await, 1);
    let next = authentik.happen(NewEvent::login(&ada()));
    bench.wait_delivered(&[&[before][..], &after, &[next]].concat()).await;
    assert_eq!(bench.metric("authentik_api_skipped_total", &[]).await, 1, "counted once");

    // It lies in the overlap: mended, it is taken after all.
    authentik.mend(spoiled);
    bench.wait_delivered(&[&[before][..], &after, &[next, spoiled]].concat()).await;
    bench.wait_said("ready").await;
    let lines = bench.daemon.whole_stdout(DEADLINE).await.unwrap();
    let said: Vec<_> = lines.lines().filter(|line| line.contains("Authentik cannot give 1 of its events")).collect();
    assert!(said.len() == 1 && said[0].contains(&after[0].to_string()), "{said:?}");
}

/// Years are read past rows that cannot be, wherever they lie, also where they are many.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_authentik_cannot_give_hold_up_no_others_on_any_page() {
    for generation in [Generation::V2024_10, Generation::V2026_8] {
        let authentik = authentik(generation).await;
        let count = 700;
        let pks: Vec<_> =
            (0..count).map(|n| authentik.happen(NewEvent::login(&ada()).at_micros(ago(100_000 - n * 7)))).collect();
        // The oldest, one alone, more than a page has, neighbours with one between, and the newest.
        let spoiled: Vec<usize> = [0, 77].into_iter().chain(200..330).chain([500, 502, 699]).collect();
        spoiled.iter().for_each(|n| authentik.spoil(pks[*n]));

        let bench = Bench::beside(&authentik, &[SINCE]).await;

        let good: Vec<_> = (0..pks.len()).filter(|n| !spoiled.contains(n)).map(|n| pks[n]).collect();
        bench.wait_delivered(&good).await;
        bench.wait_metric("authentik_poll_succeeded_seconds", &[], 1).await;
        assert_eq!(bench.accepted().await, good.len() as u64, "{generation:?}");
        let skipped = bench.metric("authentik_api_skipped_total", &[]).await;
        // Where more lie together than a page has, some of them lie on two pages.
        let all = spoiled.len() as u64;
        assert!((all..all + 40).contains(&skipped), "{generation:?}: {skipped} of {all}");
        eprintln!("{generation:?}: {} requests", authentik.counts().requests);
    }
}

/// An Authentik that fails with everything is not read around: nothing is stepped over because of it.
#[tokio::test(flavor = "multi_thread")]
async fn where_authentik_gives_nothing_at_all_nothing_is_stepped_over() {
    let authentik = authentik(Generation::V2026_2).await;
    let all: Vec<_> = (0..150).map(|n| authentik.happen(NewEvent::login(&ada()).at_micros(ago(30 - n / 10)))).collect();
    authentik.set_events_failing(true);
    let bench = Bench::beside(&authentik, &[SINCE]).await;
    bench.wait_said("Authentik answered status 500").await;
    let failures = bench.metric("authentik_api_failures_total", &[]).await;
    bench.wait_metric("authentik_api_failures_total", &[], failures + 20).await;
    assert_eq!(bench.metric("authentik_api_skipped_total", &[]).await, 0);
    authentik.set_events_failing(false);

    bench.wait_delivered(&all).await;
    assert_eq!(bench.metric("authentik_api_skipped_total", &[]).await, 0);
}

/// Three looks are spent before a page is read around, and each waits so long for an answer.
const IMPATIENT: (&str, &str) = ("SIDECAR_AUTHENTIK__TIMEOUT_SECONDS", "2");

/// One row takes for ever, and with it every page that holds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_authentik_never_ends_with_is_stepped_over_with_few_requests_and_said() {
    let authentik = authentik(Generation::V2026_2).await;
    let bench = Bench::beside(&authentik, &[IMPATIENT, ("SIDECAR_POLL__OVERLAP_SECONDS", "600")]).await;
    bench.wait_said("ready").await;
    let before: Vec<_> = (0..70).map(|n| authentik.happen(NewEvent::login(&ada()).at_micros(ago(90 - n)))).collect();
    bench.wait_delivered(&before).await;
    let endless = authentik.begin(NewEvent::login(&ada()).at_micros(ago(5)));
    authentik.make_endless(endless);
    authentik.commit(endless);
    let after: Vec<_> = (0..30).map(|_| authentik.happen(NewEvent::login(&ada()))).collect();
    let asked = authentik.counts().requests;

    bench.wait_delivered(&[&before[..], &after].concat()).await;

    bench.wait_said("cannot give 1 of its latest events").await;
    bench.wait_said(&format!("between event {} of ", before[69])).await;
    assert_eq!(bench.metric("authentik_api_skipped_total", &[]).await, 1);
    let (counts, asked) = (authentik.counts(), authentik.counts().requests - asked);
    // Three looks, and three answers more: for a small part, and twice for the row. The next look has begun, perhaps.
    assert!(counts.endless <= 6 + 1, "{counts:?}");
    assert!(asked <= 60, "{asked} requests");
    authentik.mend(endless);
    bench.wait_delivered(&[&before[..], &after, &[endless]].concat()).await;
    bench.wait_said("ready").await;
}

/// No row is to blame where all of them are slow: nothing is stepped over, and it is not asked more often for it.
#[tokio::test(flavor = "multi_thread")]
async fn where_authentik_is_slow_as_a_whole_nothing_is_stepped_over_and_little_is_asked() {
    let authentik = authentik(Generation::V2026_2).await;
    let bench = Bench::beside(&authentik, &[IMPATIENT]).await;
    bench.wait_said("ready").await;
    authentik.set_slow(Slow { list: Duration::from_secs(3), row: Duration::ZERO });
    let missed: Vec<_> = (0..20).map(|_| authentik.happen(NewEvent::login(&ada()))).collect();
    let (failed, asked) = (bench.metric("authentik_api_failures_total", &[]).await, authentik.counts().requests);
    // Two looks, and one that tries three rows.
    bench.wait_metric("authentik_api_failures_total", &[], failed + 6).await;
    bench.wait_said("gives no complete answer within").await;
    let asked = authentik.counts().requests - asked;
    assert!(asked <= 6 + 2 * 3, "{asked}: who it is, who we are, and the page, three times, and three rows");
    authentik.set_slow(Slow::default());

    bench.wait_delivered(&missed).await;
    assert_eq!(bench.metric("authentik_api_skipped_total", &[]).await, 0);
}

/// A page takes too long, each of its rows does not.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_page_is_too_much_for_authentik_it_is_read_in_smaller_parts() {
    let authentik = authentik(Generation::V2026_2).await;
    let slow = Slow { list: Duration::ZERO, row: Duration::from_millis(30) };
    authentik.set_slow(slow);
    let all: Vec<_> = (0..250).map(|n| authentik.happen(NewEvent::login(&ada()).at_micros(ago(900 - n)))).collect();
    let bench = Bench::beside(&authentik, &[SINCE, IMPATIENT]).await;

    bench.wait_delivered(&all).await;
    assert_eq!(bench.metric("authentik_api_skipped_total", &[]).await, 0);
    bench.wait_said("ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_when_to_come_again_is_not_asked_before() {
    let authentik = authentik(Generation::V2026_2).await;
    let bench = Bench::beside(&authentik, &[]).await;
    bench.wait_said("ready").await;
    let failures = bench.metric("authentik_api_failures_total", &[]).await;
    authentik.fail_next([Fault::TooMany(4)]);
    bench.wait_metric("authentik_api_failures_total", &[], failures + 1).await;
    bench.wait_said("wants fewer requests (429)").await;
    let (begun, asked) = (Instant::now(), authentik.counts().requests);
    while authentik.counts().requests == asked {
        assert!(begun.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(begun.elapsed() > Duration::from_millis(3_300), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_in_the_future_goes_back() {
    let authentik = authentik(Generation::V2024_10).await;
    let mut bench = Bench::beside(&authentik, &[]).await;
    bench.wait_said("ready").await;
    let position = r#"{"watermark":"2099-01-01T00:00:00.000Z","origin":"2026-01-01T00:00:00.000Z"}"#;
    let before = authentik.happen(NewEvent::login(&ada()).at_micros(ago(3_600)));

    bench.restart_with_value("authentik.poll.default", position).await;

    let after = authentik.happen(NewEvent::login(&ada()));
    bench.wait_delivered(&[before, after]).await;
    assert!(bench.metric("authentik_poll_watermark_seconds", &[]).await < ago(-60).unsigned_abs() / 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_cannot_be_read_is_said_and_not_begun_anew() {
    let authentik = authentik(Generation::V2026_2).await;
    let mut bench = Bench::beside(&authentik, &[]).await;
    bench.wait_said("ready").await;

    bench.restart_with_value("authentik.poll.default", r#"{"cursor":7}"#).await;
    bench.wait_said("value authentik.poll.default of the journal").await;
    let missed = authentik.happen(NewEvent::login(&ada()));
    bench.wait_said("value authentik.poll.default of the journal").await;

    let position = r#"{"watermark":"2026-01-01T00:00:00.000Z","origin":"2026-01-01T00:00:00.000Z"}"#;
    bench.restart_with_value("authentik.poll.default", position).await;
    bench.wait_delivered(&[missed]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_the_metric_says_how_far_it_was() {
    let authentik = authentik(Generation::V2026_2).await;
    let mut bench = Bench::beside(&authentik, &[]).await;
    let pk = authentik.happen(NewEvent::login(&ada()));
    bench.wait_delivered(&[pk]).await;
    authentik.set_starting(true);
    bench.restart(&[]).await;
    bench.wait_metric("authentik_poll_watermark_seconds", &[], ago(300).unsigned_abs() / 1_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_service_accounts_writes_are_its_own() {
    let authentik = authentik(Generation::V2026_2).await;
    let token = authentik.admin_token();
    let bench = Bench::beside(&authentik, &[("AUTHENTIK_TOKEN", &token)]).await;
    bench.wait_said("ready").await;
    let change = |user: &User| NewEvent::model(user, "updated", "authentik_core", "user", "5", "ada");
    let own = authentik.happen(change(&User::new(7, "outrigger")));
    let by_a_person = authentik.happen(change(&User::new(4, "akadmin")));

    bench.wait_delivered(&[by_a_person]).await;
    let excluded = bench.metric("authentik_events_excluded_total", &[("reason", "own_write")]).await;
    assert_eq!(excluded, 1, "{own}");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_it_asks_once_an_interval_also_after_a_busy_time() {
    let authentik = authentik(Generation::V2026_8).await;
    for n in 0..500 {
        authentik.happen(NewEvent::login(&ada()).at_micros(ago(900 - n)));
    }
    // The usual overlap, and more in it before the newest event than a page has.
    let settings = [SINCE, ("SIDECAR_POLL__INTERVAL_SECONDS", "0.5"), ("SIDECAR_POLL__OVERLAP_SECONDS", "300")];
    let bench = Bench::beside(&authentik, &settings).await;
    bench.wait_metric("authentik_events_total", &[("by", "poll")], 500).await;
    bench.wait_said("ready").await;
    let (begun, before) = (Instant::now(), authentik.counts().requests);
    bench.wait_metric("authentik_api_requests_total", &[], before + 6).await;
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let (asked, intervals) = ((authentik.counts().requests - before) as f64, begun.elapsed().as_secs_f64() / 0.5);
    assert!(asked <= intervals + 1.5, "{asked} requests in {intervals} intervals");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_missed_events_are_read_soon() {
    let authentik = authentik(Generation::V2026_8).await;
    let count = 10_000;
    for n in 0..count {
        authentik.happen(NewEvent::login(&User::new(n, "u")).at_micros(ago(100_000 - n * 7)));
    }
    let begun = Instant::now();
    let bench = Bench::beside(&authentik, &[SINCE]).await;
    bench.wait_metric("authentik_events_total", &[("by", "poll"), ("result", "accepted")], count.unsigned_abs()).await;
    let (took, asked) = (begun.elapsed(), authentik.counts().requests);
    eprintln!("10000 missed events: {took:?}, {asked} requests");
    assert!(asked < 150, "{asked} requests");
    // Both sides unoptimised, beside other tests: the figure itself is taken of release builds.
    assert!(took < Duration::from_secs(100), "{took:?}");
}

/// Webhooks that are lost, doubled and out of order beside the poller, and restarts: everything arrives, once in the journal.
#[tokio::test(flavor = "multi_thread")]
async fn with_webhooks_lost_and_doubled_every_event_is_stored_once() {
    let authentik = authentik(Generation::V2026_2).await;
    let mut bench = Bench::beside(&authentik, &[]).await;
    bench.wait_metric("authentik_api_requests_total", &[], 3).await;
    let mapping = Mapping::Blueprint(Authentication::Hmac, secret());
    let trouble = Trouble { lost: 0.2, twice: 0.05, delay: Duration::from_millis(20) };
    let mut pks = Vec::new();
    for _ in 0..3 {
        let options = NotifierOptions {
            trouble,
            slots: 8,
            time_scale: 0.001,
            ..NotifierOptions::new(bench.webhook_url(), mapping.clone())
        };
        let notifier = Notifier::start(authentik.state(), options);
        for n in 0..300 {
            pks.push(authentik.happen(NewEvent::login(&User::new(n % 7, "u"))));
        }
        bench.restart(&[]).await;
        notifier.stop().await;
    }
    bench.wait_delivered(&pks).await;
    assert_eq!(bench.accepted().await, pks.len() as u64);
}

/// Every page is the same one, and says that there is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_an_end_is_not_walked_for_ever() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&asked);
    let page = serde_json::json!({
        "pagination": { "next": 2, "count": 1_000_000_000_000_u64 },
        "results": [serde_json::from_str::<serde_json::Value>(&event(PK, "login")).unwrap()],
        "version_current": "2026.2.2", "user": { "pk": 7, "username": "outrigger" },
    })
    .to_string();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", page.len());
            // Whoever asks has sent all of it by then, or asks again.
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all((head + &page).as_bytes()).await;
        }
    });
    let api = [("AUTHENTIK_URL", url.as_str()), ("AUTHENTIK_TOKEN", TOKEN), SINCE];
    let bench = Bench::start("hmac-header", &api).await;

    bench.wait_said("rows move faster than they are read").await;
    let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert!(asked < 3 * 60, "{asked} requests");
}
