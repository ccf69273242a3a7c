//! What is added to an event about its user.

use kit_authentik::emulator::{AuthentikServer, Generation, Kind, NewEvent, User};
use serde_json::{Value, json};

use crate::bench::*;

const PATTERN: (&str, &str) = ("SIDECAR_ENRICHMENT__TENANT_GROUP_PATTERN", "tenant_{id}_*");

fn delivered(bench: &Bench, n: usize) -> Value {
    serde_json::from_slice(bench.gateway.received()[n].body.as_deref().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_their_users_tenant_and_groups_whichever_way_they_come() {
    let authentik = authentik(Generation::V2026_2).await;
    authentik.add_user(&ada(), &["staff", "tenant_acme_admins"], json!({}));
    let bench = Bench::beside(&authentik, &[PATTERN, ("SIDECAR_ENRICHMENT__USER", "true")]).await;
    bench.wait_metric("authentik_api_requests_total", &[], 5).await;

    authentik.happen(NewEvent::login(&ada()));
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    // Kept: Authentik is not asked for whom it has named.
    authentik.set_starting(true);
    assert_eq!(bench.send(&envelope(&event(PK, "logout"), "")).await.status, 200);
    bench.gateway.wait_for(2, DEADLINE).await.unwrap();

    for n in 0..2 {
        let event = delivered(&bench, n);
        assert_eq!(event["tenantid"], "acme", "{event}");
        assert_eq!(event["data"]["enriched"]["tenant"], "acme");
        assert_eq!(event["data"]["enriched"]["user"]["groups"], json!(["staff", "tenant_acme_admins"]));
        assert_eq!(event["data"]["enriched"]["user"]["username"], "ada");
    }
}

/// The first event of somebody whom nobody knows goes without, and the answer does not wait for Authentik.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_never_waits_for_authentik() {
    let authentik = authentik(Generation::V2024_10).await;
    authentik.set_starting(true);
    let bench = Bench::beside(&authentik, &[PATTERN]).await;

    let begun = std::time::Instant::now();
    assert_eq!(bench.send(&envelope(&event(PK, "login"), "")).await.status, 200);
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    assert!(delivered(&bench, 0).get("tenantid").is_none());
    assert_eq!(bench.metric("authentik_events_unenriched_total", &[]).await, 1);

    authentik.add_user(&ada(), &["tenant_acme_admins"], json!({}));
    authentik.set_starting(false);
    bench.wait_metric("authentik_poll_succeeded_seconds", &[], 1).await;
    let missed = authentik.happen(NewEvent::login(&ada()));
    bench.gateway.wait_for(2, DEADLINE).await.unwrap();
    let event = delivered(&bench, 1);
    assert_eq!((&event["id"], &event["tenantid"]), (&json!(id(missed)), &json!("acme")));
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_new_is_known_when_the_poller_brings_the_event() {
    let authentik = authentik(Generation::V2026_8).await;
    let bench = Bench::beside(&authentik, &[("SIDECAR_ENRICHMENT__TENANT_ATTRIBUTE", "tenant_id")]).await;
    bench.wait_metric("authentik_api_requests_total", &[], 4).await;
    let grace = User::new(77, "grace");
    authentik.add_user(&grace, &[], json!({ "tenant_id": 42 }));

    authentik.happen(NewEvent::login(&grace));
    authentik.happen(NewEvent::login(&User::new(78, "deleted")));

    bench.gateway.wait_for(2, DEADLINE).await.unwrap();
    // Of two subjects, in any order.
    let mut events = [delivered(&bench, 0), delivered(&bench, 1)];
    events.sort_by_key(|event| event["subject"].to_string());
    assert_eq!((&events[0]["subject"], &events[0]["tenantid"]), (&json!("user/77"), &json!("42")));
    assert!(events[1].get("tenantid").is_none());
}

/// She leaves her groups for those of another tenant.
fn move_ada_to_zeta(authentik: &AuthentikServer) {
    authentik.configure(|configuration| configuration.objects_mut(Kind::User).retain(|user| user["pk"] != 5));
    authentik.add_user(&ada(), &["tenant_zeta_admins"], json!({}));
}

/// Whose a user was is not whose it is: an event goes without a tenant rather than with another one's.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_the_tenant_of_before_a_change() {
    let authentik = authentik(Generation::V2026_2).await;
    authentik.add_user(&ada(), &["tenant_acme_admins"], json!({}));
    let bench = Bench::beside(&authentik, &[PATTERN, ("SIDECAR_POLL__INTERVAL_SECONDS", "3600")]).await;
    bench.wait_metric("authentik_poll_succeeded_seconds", &[], 1).await;
    let tenant_of_next = async |n: u32, event: String| {
        assert_eq!(bench.send(&envelope(&event, "")).await.status, 200);
        bench.gateway.wait_for(n as usize, DEADLINE).await.unwrap();
        let wanted = format!("{n:032x}");
        let bodies = bench.gateway.received().into_iter().map(|received| received.body.unwrap());
        let mut events = bodies.map(|body| serde_json::from_slice::<Value>(&body).unwrap());
        events.find(|event| event["data"]["pk"] == wanted.as_str()).unwrap()["tenantid"].clone()
    };
    let mut n = 1;
    let login = |n: u32| event(&format!("{n:032x}"), "login");
    while tenant_of_next(n, login(n)).await != json!("acme") {
        n += 1;
        assert!(n < 2000, "never known");
    }

    move_ada_to_zeta(&authentik);
    let change = event(&format!("{:032x}", n + 1), "model_updated").replace(
        r#""a": 1.50"#,
        r#""model": {"app": "authentik_core", "model_name": "group", "pk": "3f2504e04f8941d39a0c0305e82c3301", "name": "g"}"#,
    );
    assert_eq!(tenant_of_next(n + 1, change).await, Value::Null, "already for the event that says so");
    n += 2;
    loop {
        let tenant = tenant_of_next(n, login(n)).await;
        assert!(tenant == Value::Null || tenant == json!("zeta"), "{tenant}");
        if tenant == json!("zeta") {
            break;
        }
        n += 1;
        assert!(n < 2000, "never known again");
    }
    assert!(bench.metric("authentik_events_unenriched_total", &[]).await >= 1);
}

/// The poller asks again where what it reads says that what was known is no more.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_poller_brings_after_a_change_has_the_new_tenant() {
    let authentik = authentik(Generation::V2026_8).await;
    authentik.add_user(&ada(), &["tenant_acme_admins"], json!({}));
    let bench = Bench::beside(&authentik, &[PATTERN]).await;
    bench.wait_metric("authentik_poll_succeeded_seconds", &[], 1).await;
    authentik.happen(NewEvent::login(&ada()));
    bench.gateway.wait_for(1, DEADLINE).await.unwrap();
    assert_eq!(delivered(&bench, 0)["tenantid"], "acme");

    move_ada_to_zeta(&authentik);
    authentik.happen(NewEvent::model(&User::new(1, "akadmin"), "updated", "authentik_core", "user", "5", "ada"));
    authentik.happen(NewEvent::login(&ada()));

    bench.gateway.wait_for(3, DEADLINE).await.unwrap();
    for n in 1..3 {
        assert_eq!(delivered(&bench, n)["tenantid"], "zeta", "{n}");
    }
}

/// One user whom it cannot show spoils every list; each of the others can be asked for.
#[tokio::test(flavor = "multi_thread")]
async fn users_are_known_also_where_authentik_cannot_list_them() {
    let authentik = authentik(Generation::V2026_2).await;
    authentik.add_user(&ada(), &["tenant_acme_admins"], json!({}));
    authentik.forbid(&["core/users/"]);
    let bench = Bench::beside(&authentik, &[PATTERN]).await;
    bench.wait_said("ready").await;

    let begun = std::time::Instant::now();
    for n in 0.. {
        let body = envelope(&event(&format!("{n:032x}"), "login"), "");
        assert_eq!(bench.send(&body).await.status, 200);
        bench.gateway.wait_for(n + 1, DEADLINE).await.unwrap();
        if delivered(&bench, n)["tenantid"] == "acme" {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "never known");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
