//! The checker must fail when it should: each invariant has a history that breaks it and nothing
//! else, beside the clean history it was made from.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;
use crate::process::Exit;
use crate::scratch::Scratch;

fn at(micros: u64) -> Moment {
    Moment::from_micros(micros)
}

fn digest(body: &str) -> Digest {
    Digest::of(body.as_bytes())
}

/// An accepted request: sent at `start`, its 200 read 10 µs later, event id `id-<key>`.
fn accepted(key: &str, subject: &str, start: u64) -> SentRequest {
    SentRequest {
        key: key.to_owned(),
        organisation: "acme".into(),
        subject: subject.into(),
        body_sha256: digest(key),
        started: at(start),
        answered: Some(at(start + 10)),
        status: Some(200),
        event_id: Some(format!("id-{key}")),
        duplicate: Some(false),
    }
}

/// The same request once more, answered as a duplicate.
fn repeated(first: &SentRequest, start: u64) -> SentRequest {
    SentRequest { started: at(start), answered: Some(at(start + 10)), duplicate: Some(true), ..first.clone() }
}

/// The same request without an answer.
fn unanswered(of: &SentRequest, start: u64) -> SentRequest {
    SentRequest { started: at(start), answered: None, status: None, event_id: None, duplicate: None, ..of.clone() }
}

fn refused(of: &SentRequest, start: u64, status: u16) -> SentRequest {
    SentRequest { answered: Some(at(start + 10)), status: Some(status), ..unanswered(of, start) }
}

/// A delivery of the event with this key, answered 200 after 5 µs.
fn delivery(key: &str, time: u64) -> Delivery {
    Delivery {
        sink: GATEWAY.into(),
        at: at(time),
        answered_at: Some(at(time + 5)),
        event_id: Some(format!("id-{key}")),
        unique_key: None,
        data_sha256: digest(key),
        signature_ok: Some(true),
        taken: true,
    }
}

fn failed(key: &str, time: u64) -> Delivery {
    Delivery { taken: false, ..delivery(key, time) }
}

fn crash(from: u64, until: u64, in_flight: u64) -> Crash {
    Crash { what: "kill -9".to_owned(), from: at(from), until: at(until), in_flight }
}

/// Three events of two subjects, one duplicate, one failed attempt, one repeat around a crash, an
/// answer lost in the crash: everything that may happen, nothing that may not.
fn clean() -> Ledger {
    let mut ledger = Ledger::new();
    let (a, b, c) = (accepted("a", "invoice/1", 0), accepted("b", "invoice/1", 100), accepted("c", "invoice/2", 200));
    ledger.extend_sent([repeated(&a, 300), a, b, c]);
    let lost_answer = accepted("d", "invoice/1", 1000);
    ledger.sent(unanswered(&lost_answer, 1000));
    ledger.delivered(failed("a", 20));
    ledger.delivered(delivery("a", 400));
    ledger.delivered(delivery("b", 500));
    ledger.delivered(delivery("c", 990));
    ledger.crash(crash(1000, 2000, 2));
    ledger.delivered(delivery("c", 2100));
    ledger.delivered(delivery("d", 2200));
    ledger.stored(["id-a", "id-b", "id-c", "id-d"].map(str::to_owned));
    for origin in ["metrics", "file"] {
        ledger.counters(Counters {
            point: "end".to_owned(),
            origin: origin.to_owned(),
            sink: GATEWAY.to_owned(),
            accepted: 4,
            delivered: 4,
            ..Counters::default()
        });
    }
    let exit = Exit { code: Some(0), signal: None };
    ledger.end(EndRecord::new("processor", ExpectedEnd::Code(0), exit));
    ledger.scan_output("log", b"all is well", &[("key", b"hunter2-hunter2")]);
    ledger
}

fn check(ledger: &Ledger) -> Report {
    ledger.check(&Expectations::default())
}

/// Asserts that the history breaks `invariant`, and only that.
#[track_caller]
fn assert_breaks(ledger: &Ledger, invariant: Invariant) -> Report {
    let report = check(ledger);
    let broken: Vec<Invariant> = report.broken.keys().copied().collect();
    assert_eq!(broken, [invariant], "{report}");
    assert!(!report.is_clean());
    report
}

#[track_caller]
fn assert_clean(ledger: &Ledger) -> Report {
    let report = check(ledger);
    assert!(report.is_clean(), "{report}");
    report
}

#[test]
fn a_clean_history_passes_and_is_counted() {
    let report = assert_clean(&clean());

    assert_eq!(report.sent, 5);
    assert_eq!(report.accepted, 3);
    assert_eq!(report.unanswered, 1);
    assert_eq!(report.duplicates_answered, 1);
    assert_eq!(report.delivered_unique, 4);
    assert_eq!(report.redelivered, 1);
    assert_eq!(report.sinks[GATEWAY].attempts, 6);
    assert_eq!((report.lost, report.invented, report.corrupted, report.out_of_order), (0, 0, 0, 0));
}

#[test]
fn an_empty_history_is_clean() {
    assert_clean(&Ledger::new());
}

#[test]
fn i1_an_accepted_event_missing_from_the_journal_is_caught() {
    let mut ledger = clean();
    ledger.stored(["id-a", "id-b", "id-d"].map(str::to_owned));

    assert_breaks(&ledger, Invariant::I1);
}

#[test]
fn i2_a_lost_event_is_caught() {
    let mut ledger = clean();
    ledger.deliveries.retain(|d| d.event_id.as_deref() != Some("id-b"));
    ledger.counters.clear();

    let report = assert_breaks(&ledger, Invariant::I2);

    assert_eq!(report.lost, 1);
    assert!(report.violations[0].text.contains("id-b"), "{report}");
}

#[test]
fn i2_an_event_that_was_only_attempted_is_lost() {
    let mut ledger = Ledger::new();
    ledger.sent(accepted("a", "s", 0));
    ledger.delivered(failed("a", 20));

    assert_eq!(assert_breaks(&ledger, Invariant::I2).lost, 1);
}

#[test]
fn i2_every_expected_sink_must_have_every_event() {
    let ledger = clean();
    let expectations =
        Expectations { sinks: vec![GATEWAY.to_owned(), "rabbitmq".to_owned()], ..Expectations::default() };

    let report = ledger.check(&expectations);

    assert_eq!(report.count(Invariant::I2), 3, "{report}");
    assert_eq!(report.sinks["rabbitmq"].undelivered, 3);
    assert_eq!(report.sinks[GATEWAY].undelivered, 0);
}

#[test]
fn i2_a_listed_reason_and_an_unfinished_drain_are_no_loss() {
    let mut ledger = clean();
    ledger.deliveries.retain(|d| d.event_id.as_deref() != Some("id-b"));
    ledger.counters.clear();
    let unfinished = Expectations { drained: false, ..Expectations::default() };
    let report = ledger.check(&unfinished);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.lost, 1);

    ledger.set_aside("another sink", "id-b");
    assert_breaks(&ledger, Invariant::I2);
    ledger.set_aside(GATEWAY, "id-b");
    assert_eq!(assert_clean(&ledger).set_aside, 1);
}

#[test]
fn i3_an_invented_event_is_caught() {
    let mut ledger = clean();
    ledger.delivered(delivery("never sent", 600));

    assert_eq!(assert_breaks(&ledger, Invariant::I3).invented, 1);
}

#[test]
fn i3_changed_bytes_are_caught_even_in_an_attempt() {
    for taken in [true, false] {
        let mut ledger = clean();
        let mut changed = delivery("b", 550);
        changed.data_sha256 = digest("b, re-serialised");
        changed.taken = taken;
        ledger.deliveries.retain(|d| !taken || d.event_id != changed.event_id);
        ledger.delivered(changed);

        assert_eq!(assert_breaks(&ledger, Invariant::I3).corrupted, 1);
    }
}

#[test]
fn i3_a_delivered_forgery_is_caught() {
    let mut ledger = clean();
    ledger.sent(refused(&accepted("forged", "s", 700), 700, 401));
    ledger.delivered(delivery("forged", 800));

    assert_eq!(assert_breaks(&ledger, Invariant::I3).invented, 1);
}

#[test]
fn i3_deliveries_without_ids_are_traced_by_key_and_bytes() {
    let raw = |key: &str, time| Delivery { event_id: None, unique_key: Some(key.to_owned()), ..delivery(key, time) };
    let mut ledger = Ledger::new();
    ledger.extend_sent([accepted("a", "s", 0), accepted("b", "t", 10)]);
    ledger.delivered(raw("a", 100));
    ledger.delivered(raw("b", 110));
    assert_clean(&ledger);

    let mut swapped = ledger.clone();
    swapped.deliveries[0].data_sha256 = digest("something else");
    let report = check(&swapped);
    assert_eq!(report.corrupted, 1, "{report}");
    assert_eq!(report.count(Invariant::I3), 1);

    let mut foreign = ledger;
    foreign.deliveries[0].unique_key = Some("z".to_owned());
    foreign.deliveries[0].data_sha256 = digest("z");
    assert_eq!(check(&foreign).invented, 1);
}

#[test]
fn i3_deliveries_with_nothing_but_bytes_are_traced_one_after_another() {
    let same_bytes = |key: &str, start| SentRequest { body_sha256: digest("the same"), ..accepted(key, "", start) };
    let bare = |time| Delivery { event_id: None, data_sha256: digest("the same"), ..delivery("", time) };
    let mut ledger = Ledger::new();
    ledger.extend_sent([same_bytes("a", 0), same_bytes("b", 10), same_bytes("c", 20)]);
    ledger.delivered(bare(100));
    ledger.delivered(Delivery { taken: false, ..bare(110) });
    ledger.delivered(bare(120));
    assert_eq!(assert_breaks(&ledger, Invariant::I2).lost, 1);

    ledger.delivered(bare(130));
    assert_clean(&ledger);

    ledger.delivered(bare(140));
    assert_breaks(&ledger, Invariant::I5);
}

#[test]
fn i4_two_ids_for_one_event_are_caught() {
    let mut ledger = Ledger::new();
    let first = accepted("a", "s", 0);
    let mut second = repeated(&first, 100);
    second.event_id = Some("id-other".to_owned());
    ledger.extend_sent([first, second]);
    ledger.delivered(delivery("a", 200));

    assert_eq!(assert_breaks(&ledger, Invariant::I4).id_mismatches, 1);
}

#[test]
fn i4_one_id_for_two_events_is_caught() {
    let mut ledger = Ledger::new();
    let mut second = accepted("b", "t", 100);
    second.event_id = Some("id-a".to_owned());
    ledger.extend_sent([accepted("a", "s", 0), second]);

    let report = check(&ledger);

    assert_eq!(report.count(Invariant::I4), 1, "{report}");
}

#[test]
fn i4_a_duplicate_accepted_as_new_is_caught() {
    let mut ledger = Ledger::new();
    let first = accepted("a", "s", 0);
    let mut second = repeated(&first, 100);
    second.duplicate = Some(false);
    ledger.extend_sent([first, second]);
    ledger.delivered(delivery("a", 200));

    assert_breaks(&ledger, Invariant::I4);
}

#[test]
fn i4_a_duplicate_answered_otherwise_is_caught() {
    for (status, clean) in [(204, false), (409, false), (401, false), (503, true)] {
        let mut ledger = Ledger::new();
        let first = accepted("a", "s", 0);
        let mut second = repeated(&first, 100);
        second.status = Some(status);
        ledger.extend_sent([first, second]);
        ledger.delivered(delivery("a", 200));

        if clean {
            assert_clean(&ledger);
        } else {
            assert_breaks(&ledger, Invariant::I4);
        }
    }
}

#[test]
fn i4_a_new_event_called_a_duplicate_is_caught() {
    let mut ledger = Ledger::new();
    let mut only = accepted("a", "s", 100);
    only.duplicate = Some(true);
    ledger.sent(only.clone());
    ledger.delivered(delivery("a", 200));
    assert_breaks(&ledger, Invariant::I4);

    // With an earlier request of unknown outcome it is what must happen.
    ledger.sent(unanswered(&only, 0));
    assert_clean(&ledger);
}

#[test]
fn i4_a_delivery_under_another_id_is_caught() {
    let mut ledger = clean();
    let mut other = delivery("b", 500);
    other.event_id = Some("id-z".to_owned());
    ledger.delivered(other);

    assert_eq!(assert_breaks(&ledger, Invariant::I4).id_mismatches, 1);
}

#[test]
fn i4_the_same_key_with_another_body_is_a_new_event() {
    let mut ledger = Ledger::new();
    let first = accepted("a", "s", 0);
    let mut conflict = accepted("a", "s", 100);
    conflict.body_sha256 = digest("another body");
    conflict.event_id = Some("id-conflict".to_owned());
    ledger.extend_sent([first, conflict]);
    ledger.delivered(delivery("a", 200));
    let mut second = delivery("conflict", 300);
    second.data_sha256 = digest("another body");
    ledger.delivered(second);

    let report = assert_clean(&ledger);
    assert_eq!((report.accepted, report.conflicts), (2, 1));

    // Where the key alone decides, the same history is two ids for one event.
    let by_key = Expectations { identity: Identity::Key, ..Expectations::default() };
    assert!(ledger.check(&by_key).count(Invariant::I4) > 0);
}

#[test]
fn i5_a_repeat_without_a_crash_is_caught() {
    let mut ledger = clean();
    ledger.delivered(delivery("b", 600));

    assert_eq!(assert_breaks(&ledger, Invariant::I5).redelivered, 2);
}

#[test]
fn i5_more_repeats_than_were_in_flight_are_caught() {
    let mut ledger = clean();
    ledger.delivered(delivery("a", 2300));
    assert_clean(&ledger);

    ledger.delivered(delivery("b", 2400));

    assert_breaks(&ledger, Invariant::I5);
}

#[test]
fn i5_repeats_are_shared_out_among_crashes_as_well_as_can_be() {
    // Only the first crash can explain a; the long wait of b must leave it to that one.
    let mut ledger = Ledger::new();
    ledger.extend_sent([accepted("a", "s", 0), accepted("b", "t", 0)]);
    ledger.crash(crash(100, 200, 1));
    ledger.crash(crash(500, 600, 1));
    for (key, time) in [("a", 50), ("b", 60), ("a", 300), ("b", 700)] {
        ledger.delivered(delivery(key, time));
    }
    assert_clean(&ledger);

    ledger.delivered(delivery("a", 800));
    assert_breaks(&ledger, Invariant::I5);
}

#[test]
fn i5_a_replay_on_purpose_is_no_repeat() {
    let mut ledger = clean();
    ledger.delivered(delivery("a", 5000));
    ledger.delivered(delivery("a", 6000));
    assert_breaks(&ledger, Invariant::I5);

    ledger.replayed("id-a");

    assert_clean(&ledger);
}

#[test]
fn order_b_before_a_is_caught() {
    let mut ledger = Ledger::new();
    ledger.extend_sent([accepted("a", "s", 0), accepted("b", "s", 100)]);
    ledger.delivered(delivery("b", 200));
    ledger.delivered(delivery("a", 300));

    assert_eq!(assert_breaks(&ledger, Invariant::Order).out_of_order, 1);
    let unordered = Expectations { ordered: false, ..Expectations::default() };
    assert!(ledger.check(&unordered).is_clean());
}

#[test]
fn order_b_while_a_is_not_answered_is_caught() {
    let mut ledger = Ledger::new();
    ledger.extend_sent([accepted("a", "s", 0), accepted("b", "s", 100)]);
    let mut slow = delivery("a", 200);
    slow.answered_at = Some(at(400));
    ledger.delivered(slow);
    ledger.delivered(delivery("b", 300));

    assert_breaks(&ledger, Invariant::Order);
}

#[test]
fn order_is_not_defined_for_requests_that_overlapped_nor_between_subjects() {
    let mut overlapping = Ledger::new();
    // b was sent while the answer to a was still on its way.
    overlapping.extend_sent([accepted("a", "s", 0), accepted("b", "s", 5)]);
    overlapping.delivered(delivery("b", 200));
    overlapping.delivered(delivery("a", 300));
    assert_clean(&overlapping);

    let mut subjects = Ledger::new();
    subjects.extend_sent([accepted("a", "s", 0), accepted("b", "t", 100)]);
    subjects.delivered(delivery("b", 200));
    subjects.delivered(delivery("a", 300));
    assert_clean(&subjects);

    let mut organisations = Ledger::new();
    let mut other = accepted("b", "s", 100);
    other.organisation = "globex".into();
    organisations.extend_sent([accepted("a", "s", 0), other]);
    organisations.delivered(delivery("b", 200));
    organisations.delivered(delivery("a", 300));
    assert_clean(&organisations);
}

#[test]
fn order_counts_from_the_first_time_an_event_was_sent() {
    // b was first sent before a, without an answer: it may have been stored then.
    let mut ledger = Ledger::new();
    let b = accepted("b", "s", 500);
    ledger.extend_sent([unanswered(&b, 0), accepted("a", "s", 100), b]);
    ledger.delivered(delivery("b", 600));
    ledger.delivered(delivery("a", 700));

    assert_clean(&ledger);
}

#[test]
fn order_exempts_a_replayed_event() {
    let mut ledger = Ledger::new();
    ledger.extend_sent([accepted("a", "s", 0), accepted("b", "s", 100)]);
    ledger.delivered(delivery("b", 200));
    ledger.delivered(delivery("a", 9000));

    // a had been parked and released its subject; an operator replayed it later.
    ledger.replayed("id-a");

    assert_clean(&ledger);
}

#[test]
fn signature_a_wrong_one_is_caught_and_a_missing_one_where_it_is_demanded() {
    let mut ledger = clean();
    ledger.deliveries[1].signature_ok = Some(false);
    assert_breaks(&ledger, Invariant::Signature);

    ledger.deliveries[1].signature_ok = None;
    assert_clean(&ledger);
    let signed = Expectations { signed: true, ..Expectations::default() };
    assert_eq!(ledger.check(&signed).count(Invariant::Signature), 1);
}

fn usage(transaction: &str) -> UsageEvent {
    UsageEvent {
        transaction_id: transaction.to_owned(),
        external_subscription_id: "sub".to_owned(),
        code: "calls".to_owned(),
        timestamp: "1795236024.123".to_owned(),
        properties_sha256: digest("{}"),
    }
}

fn usage_history() -> Ledger {
    let mut ledger = Ledger::new();
    for transaction in ["t1", "t2"] {
        ledger.record(Entry::UsageSent(usage(transaction)));
        ledger.record(Entry::UsageAttempt(UsageAttempt(usage(transaction))));
        ledger.record(Entry::UsageStored(UsageStored(usage(transaction))));
    }
    // "Did it but said no": a second attempt is fine as long as nothing changes.
    ledger.record(Entry::UsageAttempt(UsageAttempt(usage("t1"))));
    ledger
}

#[test]
fn i6_usage_that_is_exact_passes() {
    assert_clean(&usage_history());
}

#[test]
fn i6_every_way_of_billing_wrongly_is_caught() {
    let mut twice = usage_history();
    twice.record(Entry::UsageStored(UsageStored(usage("t1"))));
    assert_breaks(&twice, Invariant::I6);

    let mut missing = usage_history();
    missing.usage.stored.pop();
    assert_breaks(&missing, Invariant::I6);

    let mut invented = usage_history();
    invented.record(Entry::UsageStored(UsageStored(usage("t3"))));
    assert_breaks(&invented, Invariant::I6);

    let mut unknown = usage_history();
    unknown.record(Entry::UsageAttempt(UsageAttempt(usage("t3"))));
    assert_breaks(&unknown, Invariant::I6);

    let changes: [fn(&mut UsageEvent); 3] = [
        |event| event.timestamp = "1795236024.124".to_owned(),
        |event| event.code = "bytes".to_owned(),
        |event| event.properties_sha256 = digest("{ }"),
    ];
    for change in changes {
        let mut changed = usage("t1");
        change(&mut changed);
        let mut regenerated = usage_history();
        regenerated.record(Entry::UsageAttempt(UsageAttempt(changed)));
        assert_breaks(&regenerated, Invariant::I6);
    }
}

#[test]
fn i7_states_that_do_not_add_up_are_caught() {
    let mut ledger = clean();
    ledger.counters.truncate(1);
    ledger.counters[0].delivered = 3;
    assert_breaks(&ledger, Invariant::I7);

    ledger.counters[0].retrying = 1;
    assert_clean(&ledger);
}

#[test]
fn i7_metrics_and_file_that_differ_are_caught() {
    let mut ledger = clean();
    ledger.counters[1].delivered = 3;
    ledger.counters[1].parked = 1;
    assert_breaks(&ledger, Invariant::I7);

    // Of another point in time they may.
    ledger.counters[1].point = "before the drain".to_owned();
    assert_clean(&ledger);
}

#[test]
fn i7_an_account_that_contradicts_sender_or_receiver_is_caught() {
    // Fewer than were acknowledged; more than were sent; delivered what nobody received.
    for (accepted, delivered, pending) in [(2, 2, 0), (6, 4, 2), (5, 5, 0)] {
        let mut ledger = clean();
        ledger.counters.truncate(1);
        let counters = &mut ledger.counters[0];
        (counters.accepted, counters.delivered, counters.pending) = (accepted, delivered, pending);

        assert!(check(&ledger).count(Invariant::I7) > 0, "{accepted}");
        let partial = Expectations { whole_history: false, ..Expectations::default() };
        assert!(ledger.check(&partial).is_clean());
    }
}

#[test]
fn i8_resources_that_do_not_come_back_are_caught() {
    let before = Resources { rss_bytes: 10_000, open_fds: 12, disk_bytes: 1_000 };
    let allowed_growth = Resources { rss_bytes: 500, open_fds: 1, disk_bytes: 100 };
    let record = |after| ResourcesRecord { process: "processor".to_owned(), before, after, allowed_growth };
    let limit = Resources { rss_bytes: 10_500, open_fds: 13, disk_bytes: 1_100 };
    let mut ledger = clean();
    ledger.resources(record(limit));
    assert_clean(&ledger);

    for above in [
        Resources { rss_bytes: 10_501, ..limit },
        Resources { open_fds: 14, ..limit },
        Resources { disk_bytes: 1_101, ..limit },
    ] {
        let mut ledger = clean();
        ledger.resources(record(above));
        assert_breaks(&ledger, Invariant::I8);
    }
}

#[test]
fn i9_a_secret_is_caught_in_plain_and_in_any_base64_alignment() {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    let secret = b"hunter2-hunter2";
    let plain = b"key=hunter2-hunter2;".to_vec();
    let encoded = (0..3).map(|shift| {
        let text = [&vec![b'u'; shift], &secret[..], b":tail"].concat();
        format!("authorization: Basic {}", STANDARD.encode(text)).into_bytes()
    });
    for output in std::iter::once(plain).chain(encoded) {
        let mut ledger = clean();
        ledger.scan_output("log", &output, &[("api key", secret)]);

        let report = assert_breaks(&ledger, Invariant::I9);
        let text = report.to_string();
        assert!(text.contains("api key"), "{text}");
        assert!(!text.contains("hunter2"), "the report shows the secret");
    }
}

#[test]
fn i10_panics_aborts_and_wrong_exit_codes_are_caught() {
    for output in [
        "x\nthread 'main' panicked at src/x.rs:1:2:\ny",
        r#"{"level":"ERROR","message":"panic at src/x.rs:1:2","logger":"kit::telemetry"}"#,
    ] {
        let mut panic = clean();
        panic.scan_output("stderr", output.as_bytes(), &[]);
        assert_breaks(&panic, Invariant::I10);
    }

    for (code, signal, expected, clean_end) in [
        (Some(0), None, ExpectedEnd::Code(0), true),
        (Some(1), None, ExpectedEnd::Code(0), false),
        (None, Some(6), ExpectedEnd::Code(0), false),
        (None, Some(9), ExpectedEnd::Signal(9), true),
        (Some(0), None, ExpectedEnd::Signal(9), false),
        (Some(78), None, ExpectedEnd::Code(78), true),
    ] {
        let mut ledger = clean();
        ledger.end(EndRecord::new("processor", expected, Exit { code, signal }));
        if clean_end {
            assert_clean(&ledger);
        } else {
            assert_breaks(&ledger, Invariant::I10);
        }
    }
}

#[test]
fn an_unexpected_delivery_to_another_sink_is_still_checked_for_truth() {
    let mut ledger = clean();
    let mut stray = delivery("never sent", 600);
    stray.sink = "elsewhere".into();
    ledger.delivered(stray);

    assert_breaks(&ledger, Invariant::I3);
}

#[test]
fn a_refused_event_is_not_expected_to_arrive() {
    let mut ledger = clean();
    ledger.sent(refused(&accepted("e", "s", 0), 0, 503));
    ledger.sent(refused(&accepted("f", "s", 0), 0, 401));

    assert_eq!(assert_clean(&ledger).refused, 2);
}

#[test]
fn texts_are_bounded_and_counts_are_not() {
    let mut ledger = Ledger::new();
    for number in 0..1000 {
        ledger.sent(accepted(&format!("key-{number}"), "", number * 100));
    }

    let report = assert_breaks(&ledger, Invariant::I2);

    assert_eq!(report.lost, 1000);
    assert_eq!(report.count(Invariant::I2), 1000);
    assert_eq!(report.violations.len(), 21);
    assert_eq!(report.violations[20].text, "and 980 more");
}

#[test]
fn the_closing_ledger_reads_as_a_table_and_as_json() {
    let report = check(&clean());

    let text = report.to_string();
    assert!(text.contains("requests sent                             5\n"), "{text}");
    assert!(text.contains("the ledger                         balances"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["lost"], 0);
    assert_eq!(json["sinks"]["gateway"]["delivered_unique"], 4);
    assert_eq!(json["violations"], serde_json::json!([]));
}

#[test]
fn a_request_is_noted_as_it_goes() {
    let mut request = SentRequest::begin("acme", "k", "s", digest("k"));
    assert!(request.is_unknown());

    request.finish(200, br#"{"id":"e","duplicate":false,"more":1}"#);
    assert!(request.is_accepted());
    assert_eq!(request.event_id.as_deref(), Some("e"));
    assert_eq!(request.duplicate, Some(false));
    assert!(request.answered >= Some(request.started));

    let mut refused = SentRequest::begin("acme", "k", "s", digest("k"));
    refused.finish(401, br#"{"id":"e"}"#);
    assert!(!refused.is_accepted() && !refused.is_unknown());
    assert_eq!(refused.event_id, None);

    // A body that is not ours does not make an answer less of a 2xx.
    let mut other = SentRequest::begin("acme", "k", "s", digest("k"));
    other.finish(204, b"");
    assert!(other.is_accepted());
}

#[tokio::test]
async fn resources_of_a_process_are_read() {
    let scratch = Scratch::new("ledger").unwrap();
    scratch.write("journal.db", vec![0; 1000]).unwrap();
    scratch.write("journal.db-wal", vec![0; 24]).unwrap();
    let command = crate::process::DaemonCommand::new("/bin/sleep").args(["60"]);
    let process = command.spawn().unwrap();

    let resources = Resources::read(&process, scratch.path()).unwrap();

    assert_eq!(resources.disk_bytes, 1024);
    assert!(resources.rss_bytes > 0 && resources.open_fds >= 3);
}

#[test]
fn a_history_survives_a_file() {
    let scratch = Scratch::new("ledger").unwrap();
    let mut ledger = clean();
    ledger.set_aside(GATEWAY, "id-x");
    ledger.replayed("id-a");
    ledger.scan_output("log", b"panicked at hunter2-hunter2", &[("key", b"hunter2-hunter2")]);
    ledger.resources(ResourcesRecord {
        process: "p".to_owned(),
        before: Resources::default(),
        after: Resources { open_fds: 1, ..Resources::default() },
        allowed_growth: Resources::default(),
    });
    ledger.record(Entry::UsageSent(usage("t1")));
    let path = scratch.file("history.jsonl");

    ledger.write_jsonl(&path).unwrap();
    let again = Ledger::read_jsonl(&path).unwrap();

    assert_eq!(check(&again), check(&ledger));
    let broken: BTreeSet<_> = check(&again).broken.into_keys().collect();
    assert_eq!(broken.into_iter().collect::<Vec<_>>(), [Invariant::I6, Invariant::I8, Invariant::I9, Invariant::I10]);
}

#[test]
fn a_broken_history_file_names_its_line() {
    let scratch = Scratch::new("ledger").unwrap();
    let path = scratch.write("history.jsonl", "{\"replayed\":{\"event_id\":\"x\"}}\n{\"repl").unwrap();

    let error = Ledger::read_jsonl(&path).unwrap_err();

    assert!(error.to_string().contains("line 2"), "{error}");
}
