//! What is added to an event about its user.

use kit_authentik::emulator::{Generation, NewEvent, User};
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
    assert!(begun.elapsed() < std::time::Duration::from_secs(2));
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
    assert_eq!(delivered(&bench, 0)["tenantid"], "42");
    assert!(delivered(&bench, 1).get("tenantid").is_none());
}
