//! The worker that sends webhooks.

use serde_json::json;

use super::receiver::{Manner, Receiver};
use super::*;
use crate::blueprint::Authentication;
use crate::envelope::Envelope;
use crate::signature::Secrets;

/// Seconds of Authentik are milliseconds.
fn fast(url: &str) -> NotifierOptions {
    let mapping = Mapping::Blueprint(Authentication::Hmac, secret());
    NotifierOptions { time_scale: 0.001, ..NotifierOptions::new(url, mapping) }
}

async fn authentik(generation: Generation) -> AuthentikServer {
    AuthentikServer::start(generation).await.unwrap()
}

fn body(request: &str) -> &str {
    request.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn what_is_sent_proves_itself_to_our_own_check() {
    for generation in Generation::ALL {
        let authentik = authentik(generation).await;
        let receiver = Receiver::start(Manner::Status(200)).await;
        let notifier = Notifier::start(authentik.state(), fast(&receiver.url));
        let pk = authentik.happen(NewEvent::login(&User::new(5, "zoë")));
        assert!(notifier.quiet(SOON).await);

        let request = receiver.requests().remove(0);
        let secrets = Secrets::new(&[secret()]).unwrap();
        let envelope = Envelope::read(body(&request).as_bytes()).unwrap();
        assert_eq!(envelope.event.pk, pk);
        secrets.verify_body(&envelope).unwrap();
        let header = request.lines().find_map(|line| line.strip_prefix("X-Outrigger-Signature: "));
        assert_eq!(header.is_some(), generation.has_header_mapping());
        if let Some(header) = header {
            secrets.verify_header(Some(header.as_bytes()), body(&request).as_bytes()).unwrap();
        }
    }
}

#[tokio::test]
async fn each_user_of_the_group_gets_one_unless_it_is_sent_once() {
    for (send_once, wanted) in [(true, 1), (false, 3)] {
        let authentik = authentik(Generation::V2026_2).await;
        let receiver = Receiver::start(Manner::Status(200)).await;
        let options = NotifierOptions { send_once, recipients: 3, ..fast(&receiver.url) };
        let notifier = Notifier::start(authentik.state(), options);

        authentik.happen(NewEvent::login(&User::new(5, "ada")));

        assert!(notifier.quiet(SOON).await);
        assert_eq!(receiver.requests().len(), wanted);
    }
}

#[tokio::test]
async fn a_group_without_users_is_told_nothing() {
    let authentik = authentik(Generation::V2026_2).await;
    let receiver = Receiver::start(Manner::Status(200)).await;
    let notifier = Notifier::start(authentik.state(), NotifierOptions { recipients: 0, ..fast(&receiver.url) });
    authentik.happen(NewEvent::login(&User::new(5, "ada")));
    assert_eq!((notifier.counts().events, notifier.counts().begun), (1, 0));
}

#[tokio::test]
async fn failures_are_tried_again_as_often_as_the_version_does() {
    for (generation, attempts) in
        [(Generation::V2024_10, 4), (Generation::V2025_4, 4), (Generation::V2025_8, 6), (Generation::V2026_8, 6)]
    {
        let authentik = authentik(generation).await;
        let receiver = Receiver::start(Manner::Status(410)).await;
        let notifier = Notifier::start(authentik.state(), fast(&receiver.url));

        authentik.happen(NewEvent::login(&User::new(5, "ada")));

        assert!(notifier.quiet(SOON).await, "{generation:?}");
        assert_eq!((notifier.counts().attempts, notifier.counts().given_up), (attempts, 1), "{generation:?}");
    }
}

#[test]
fn the_waits_between_attempts_are_those_of_the_version() {
    let all = |generation: Generation, random: f64| {
        let schedule = generation.retry_schedule();
        (1..=schedule.retries).map(|n| schedule.wait_before(n, random).as_millis()).collect::<Vec<_>>()
    };
    assert_eq!(all(Generation::V2024_10, 1.0), [1000, 2000, 4000]);
    assert_eq!(all(Generation::V2024_10, 0.0), [0, 0, 0]);
    assert_eq!(all(Generation::V2026_2, 0.0), [7500, 15_000, 30_000, 60_000, 120_000]);
    assert_eq!(all(Generation::V2026_2, 1.0), [15_000, 30_000, 60_000, 120_000, 240_000]);
}

#[tokio::test]
async fn a_failure_that_is_reported_is_told_to_rules_that_match_everything() {
    let authentik = authentik(Generation::V2024_10).await;
    let receiver = Receiver::start(Manner::Status(500)).await;
    let everything = Notifier::start(authentik.state(), NotifierOptions { has_policy: false, ..fast(&receiver.url) });
    authentik.happen(NewEvent::login(&User::new(5, "ada")));
    tokio::time::timeout(SOON, async {
        while everything.counts().events < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("every failure makes an event, which is told, which fails");
    drop(everything);

    let ours = Notifier::start(authentik.state(), fast(&receiver.url));
    authentik.happen(NewEvent::login(&User::new(5, "ada")));
    assert!(ours.quiet(SOON).await);
    assert_eq!((ours.counts().events, ours.counts().refused_by_policy), (2, 1));
}

#[tokio::test]
async fn a_redirect_makes_a_get_of_it_and_counts_as_delivered() {
    let authentik = authentik(Generation::V2026_2).await;
    for (status, method) in [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")] {
        let target = Receiver::start(Manner::Status(200)).await;
        let location: &'static str = Box::leak(target.url.clone().into_boxed_str());
        let receiver = Receiver::start(Manner::Redirect(status, location)).await;
        let notifier = Notifier::start(authentik.state(), fast(&receiver.url));

        authentik.happen(NewEvent::login(&User::new(5, "ada")));

        assert!(notifier.quiet(SOON).await);
        assert_eq!((notifier.counts().delivered, notifier.counts().redirected), (1, 1));
        let request = target.requests().remove(0);
        assert!(request.starts_with(&format!("{method} /webhooks/authentik HTTP/1.1\r\n")), "{status}: {request}");
        assert_eq!(body(&request).is_empty(), method == "GET");
        assert_eq!(request.contains("Content-Type"), method == "POST");
    }
}

#[tokio::test]
async fn a_receiver_that_never_answers_is_cut_off_after_the_timeout_of_the_version() {
    // 30 seconds and then again; or a task of 600 seconds that is not.
    for (generation, attempts) in [(Generation::V2026_2, 6), (Generation::V2024_10, 1)] {
        let authentik = authentik(generation).await;
        let receiver = Receiver::start(Manner::Hang).await;
        let notifier = Notifier::start(authentik.state(), fast(&receiver.url));
        let begin = std::time::Instant::now();

        authentik.happen(NewEvent::login(&User::new(5, "ada")));

        assert!(notifier.quiet(SOON).await);
        assert_eq!((notifier.counts().attempts, notifier.counts().given_up), (attempts, 1), "{generation:?}");
        let least = if generation == Generation::V2024_10 { 600 } else { 180 };
        assert!(begin.elapsed() >= Duration::from_millis(least), "{:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn a_mapping_that_fails_sends_nothing() {
    for (mapping, generation, attempts) in [
        (Mapping::Raises, Generation::V2024_10, 1),
        (Mapping::Raises, Generation::V2026_2, 6),
        (Mapping::NumberInHeader(secret()), Generation::V2026_2, 6),
    ] {
        let authentik = authentik(generation).await;
        let receiver = Receiver::start(Manner::Status(200)).await;
        let notifier =
            Notifier::start(authentik.state(), NotifierOptions { mapping: mapping.clone(), ..fast(&receiver.url) });

        authentik.happen(NewEvent::login(&User::new(5, "ada")));

        assert!(notifier.quiet(SOON).await);
        assert_eq!((notifier.counts().attempts, receiver.requests().len()), (attempts, 0), "{mapping:?}");
        let (_, raised) = get(&authentik, "events/events/?action=property_mapping_exception").await;
        let wanted = if matches!(mapping, Mapping::Raises) { attempts } else { 0 };
        assert_eq!(raised["pagination"]["count"], wanted);
    }
}

#[tokio::test]
async fn what_is_lost_is_lost_and_what_comes_twice_comes_twice() {
    let authentik = authentik(Generation::V2026_2).await;
    let receiver = Receiver::start(Manner::Status(200)).await;
    let trouble = Trouble { lost: 0.5, twice: 0.5, delay: Duration::from_millis(5) };
    let notifier = Notifier::start(authentik.state(), NotifierOptions { trouble, ..fast(&receiver.url) });

    for _ in 0..200 {
        authentik.happen(NewEvent::login(&User::new(5, "ada")));
    }

    assert!(notifier.quiet(SOON).await);
    let counts = notifier.counts();
    assert!((50..150).contains(&counts.lost), "{counts:?}");
    assert!(counts.begun > 200 - counts.lost, "{counts:?}");
    assert_eq!(counts.delivered, counts.begun);
    assert_eq!(receiver.requests().len() as u64, counts.begun);
}

#[tokio::test]
async fn a_notification_that_comes_before_the_commit_is_dropped_by_older_versions() {
    for (generation, wanted) in [(Generation::V2024_10, 0), (Generation::V2026_2, 1)] {
        let authentik = authentik(generation).await;
        let receiver = Receiver::start(Manner::Status(200)).await;
        let notifier = Notifier::start(authentik.state(), fast(&receiver.url));

        let pk = authentik.begin(NewEvent::login(&User::new(5, "ada")));
        authentik.commit(pk);

        assert!(notifier.quiet(SOON).await);
        assert_eq!((notifier.counts().begun, authentik.counts().too_early), (wanted, 1 - wanted));
        authentik.save_again(pk);
        assert!(notifier.quiet(SOON).await);
        assert_eq!(notifier.counts().begun, wanted + 1);
    }
}

#[tokio::test]
async fn the_test_of_a_transport_sends_at_once_and_says_what_was_answered() {
    let authentik = authentik(Generation::V2026_2).await;
    authentik.set_webhook_secret(Some(secret()));
    let receiver = Receiver::start(Manner::Status(200)).await;
    let transport = authentik.configure(|configuration| {
        let transport = &mut configuration.objects_mut(Kind::Transport)[0];
        transport["webhook_url"] = json!(receiver.url);
        transport["pk"].as_str().unwrap().to_owned()
    });
    let test = |token: String| {
        let url = format!("{}/api/v3/events/transports/{transport}/test/", authentik.url());
        client().post(url).bearer_auth(token).send()
    };

    assert_eq!(test(authentik.token()).await.unwrap().status(), 403);
    let told: Value =
        serde_json::from_str(&test(authentik.admin_token()).await.unwrap().text().await.unwrap()).unwrap();

    assert_eq!(told, json!({ "messages": ["200", "told"] }));
    let request = receiver.requests().remove(0);
    let envelope = Envelope::read(body(&request).as_bytes()).unwrap();
    assert_eq!((envelope.event.action.as_str(), envelope.event.user.pk), ("custom_notification_test", None));
    Secrets::new(&[secret()]).unwrap().verify_body(&envelope).unwrap();
    receiver.set(Manner::Status(401));
    assert_eq!(test(authentik.admin_token()).await.unwrap().status(), 500);
}
