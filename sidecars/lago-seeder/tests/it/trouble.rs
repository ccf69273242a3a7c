//! Two at once, answers that are lost, and a Lago that says no.

use std::time::Duration;

use kit_lago::management::Kind;
use kit_lago::stand_in::billing::{Effect, Fault, Faults, Latency, On, Profile, When};
use lago_seeder::{Mode, Outcome, RunError, Seeder};
use serde_json::{Value, json};

use crate::bench::{Bench, all_are, catalogue, connect, entry, settings, shipped};

#[tokio::test(flavor = "multi_thread")]
async fn two_seeders_at_once_do_no_harm() {
    for profile in Profile::ALL {
        for round in 0..10 {
            let (bench, catalogue) = (Bench::start(profile).await, shipped("catalogue.toml"));
            let latency = Latency::Between(Duration::ZERO, Duration::from_millis(4));
            bench.lago.set_faults(Faults { seed: round, latency, ..Faults::default() });
            let (api, client) = connect(&bench.lago.url());
            let other = Seeder::new((&api, &client), &catalogue, (settings(), Mode::Apply), &|_| ());

            let (one, other) = tokio::join!(bench.apply(&catalogue), other.run());

            let other = other.unwrap();
            assert!(one.is_settled() && other.is_settled(), "{profile:?} {round}: {one:#?} {other:#?}");
            bench.lago.set_faults(Faults::default());
            all_are(&bench.look(&catalogue).await, Outcome::Same);
            for kind in [Kind::BillableMetric, Kind::Plan, Kind::WebhookEndpoint] {
                let made = bench.api.objects(kind).await.unwrap().len();
                assert_eq!(made, catalogue.identities(kind).len(), "{kind:?} twice");
            }
            for plan in bench.api.objects(Kind::Plan).await.unwrap() {
                assert_eq!(plan["charges"].as_array().unwrap().len(), 1, "{plan:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_mend_the_same_plan_make_no_charge_twice() {
    for round in 0..20 {
        let (bench, list) = (Bench::start(Profile::V1_16).await, shipped("catalogue.toml"));
        bench.apply(&list).await;
        let without = json!({ "interval": "monthly", "charges": [] });
        bench.api.update(Kind::Plan, "scale", without.as_object().unwrap()).await.unwrap();
        let latency = Latency::Between(Duration::ZERO, Duration::from_millis(4));
        bench.lago.set_faults(Faults { seed: round, latency, ..Faults::default() });
        let (api, client) = connect(&bench.lago.url());
        let other = Seeder::new((&api, &client), &list, (settings(), Mode::Apply), &|_| ());

        let (one, other) = tokio::join!(bench.apply(&list), other.run());

        let other = other.unwrap();
        assert!(one.is_settled() && other.is_settled(), "{round}: {one:#?} {other:#?}");
        let charges = bench.object(Kind::Plan, "scale").await["charges"].clone();
        assert_eq!(charges.as_array().unwrap().len(), 1, "{round}: {charges}");
    }
}

/// Everything that may go wrong on the way, at a quarter of all requests.
#[tokio::test]
async fn lost_answers_and_passing_errors_end_in_the_same_catalogue() {
    for (seed, effect) in [
        Effect::DoneThenClosed,
        Effect::DoneThenAnswer(502),
        Effect::Reset,
        Effect::Answer(503),
        Effect::TooManyRequests { limit: 10, reset_seconds: 0 },
    ]
    .into_iter()
    .enumerate()
    {
        let (bench, catalogue) = (Bench::start(Profile::V1_39).await, shipped("catalogue.toml"));
        let rules = vec![Fault::new(effect, When::Chance(0.25)).on(On::Everything)];
        bench.lago.set_faults(Faults { seed: seed as u64, rules, ..Faults::default() });

        let report = bench.apply(&catalogue).await;

        assert!(report.is_settled(), "{effect:?}: {report:#?}");
        bench.lago.set_faults(Faults::default());
        all_are(&bench.look(&catalogue).await, Outcome::Same);
        assert_eq!(bench.api.objects(Kind::Plan).await.unwrap().len(), 5, "{effect:?}");
    }
}

#[tokio::test]
async fn an_internal_error_after_the_deed_is_no_failure_and_one_for_good_is() {
    let (bench, catalogue) = (Bench::start(Profile::V1_16).await, shipped("catalogue.toml"));
    let once = Fault::new(Effect::DoneThenAnswer(500), When::Next(3)).on(On::Managing);
    bench.lago.set_faults(Faults { rules: vec![once], ..Faults::default() });
    let report = bench.apply(&catalogue).await;
    assert!(report.is_settled(), "{report:#?}");

    let bench = Bench::start(Profile::V1_16).await;
    let always = Fault::new(Effect::Answer(500), When::Always).on(On::Managing);
    bench.lago.set_faults(Faults { rules: vec![always], ..Faults::default() });
    let report = bench.apply(&catalogue).await;
    assert!(report.entries.iter().all(|entry| entry.outcome == Outcome::Failed), "{report:#?}");
    let growth = entry(&report, "growth");
    // Its metric could not be made either.
    assert!(growth.problems[0].text.contains("\"ai_requests\""), "{growth:#?}");
    let metric = entry(&report, "ai_requests");
    assert!(metric.problems[0].text.contains("500") && metric.problems[0].fix.contains("log"), "{metric:#?}");
}

#[tokio::test]
async fn what_lago_refuses_is_told_in_its_words_and_the_rest_is_done() {
    let bench = Bench::start(Profile::V1_16).await;
    // Four others leave room for one of the two.
    let object = |n: u32| json!({ "webhook_url": format!("http://other.test/{n}"), "signature_algo": "hmac" });
    for n in 0..4 {
        bench.api.create(Kind::WebhookEndpoint, object(n).as_object().unwrap()).await.unwrap();
    }
    let text = "[[plans]]\ncode='half'\nname='H'\ninterval='semiannual'\namount_cents=1\namount_currency='USD'\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=1\namount_currency='USD'\n[[webhook_endpoints]]\nwebhook_url='http://a.test/'\nsignature_algo='jwt'\n[[webhook_endpoints]]\nwebhook_url='http://b.test/'\nsignature_algo='jwt'";

    let report = bench.apply(&catalogue(text)).await;

    let half = entry(&report, "half");
    assert!(half.outcome == Outcome::Failed && half.problems[0].text.contains("interval"), "{half:#?}");
    assert_eq!(entry(&report, "p").outcome, Outcome::Created);
    assert_eq!(entry(&report, "http://a.test/").outcome, Outcome::Created);
    let second = entry(&report, "http://b.test/");
    assert!(second.problems[0].text.contains("Maximum number of webhook endpoints"), "{second:#?}");
    assert!(!report.is_settled() && !report.only_waits());
}

#[tokio::test]
async fn what_the_state_of_the_business_or_the_key_forbids_is_no_reason_to_go_on_trying() {
    for (profile, status, word) in
        [(Profile::V1_16, 405, "405"), (Profile::V1_16, 403, "licence"), (Profile::V1_39, 403, "for_plan")]
    {
        let (bench, list) = (Bench::start(profile).await, shipped("catalogue.toml"));
        let never = Fault::new(Effect::Answer(status), When::Always).on(On::Managing);
        bench.lago.set_faults(Faults { rules: vec![never], ..Faults::default() });
        let plan =
            catalogue("[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=1\namount_currency='USD'");

        let report = bench.apply(&plan).await;

        let text = &entry(&report, "p").problems[0].text;
        assert!(text.contains(word) && text.contains(&status.to_string()), "{text}");
        assert_eq!(bench.lago.counts().faults, 1, "once is enough");
        assert!(!bench.apply(&list).await.is_settled());
    }
}

#[tokio::test]
async fn a_refused_key_ends_it_at_once() {
    let (bench, list) = (Bench::start(Profile::V1_16).await, shipped("catalogue.toml"));
    let rules = vec![Fault::new(Effect::Answer(401), When::Always).on(On::Everything)];
    bench.lago.set_faults(Faults { rules, ..Faults::default() });

    for mode in [Mode::Look, Mode::Apply] {
        assert_eq!(bench.try_run(&list, settings(), mode).await, Err(RunError::Denied));
    }
    let text = RunError::Denied.to_string();
    assert!(text.contains("LAGO_API_KEY") && text.contains("401") && !text.contains(crate::bench::KEY), "{text}");
}

#[tokio::test]
async fn more_than_a_page_of_others_is_found_and_pruned() {
    let bench = Bench::start(Profile::V1_39).await;
    for n in 0..230 {
        let plan = json!({ "code": format!("old-{n}"), "name": "Old", "interval": "monthly", "amount_cents": 1,
            "amount_currency": "USD", "pay_in_advance": false });
        bench.api.create(Kind::Plan, plan.as_object().unwrap()).await.unwrap();
    }
    let list = shipped("catalogue.toml");
    let shown = bench.apply(&list).await;
    assert_eq!(shown.entries.iter().filter(|entry| entry.outcome == Outcome::Extra).count(), 230);
    let again = Fault::new(Effect::DoneThenAnswer(502), When::Chance(0.1)).on(On::Managing);
    bench.lago.set_faults(Faults { rules: vec![again], seed: 5, ..Faults::default() });

    let pruned = bench.prune(&list, Mode::Apply).await;

    assert!(pruned.is_settled());
    let left: Vec<Value> =
        bench.api.objects(Kind::Plan).await.unwrap().into_iter().map(|plan| plan["code"].clone()).collect();
    assert_eq!(left.len(), 5, "{left:?}");
}
