//! What keeps the daemon from starting, and what does not.

use kit_workbench::process::DaemonCommand;

use crate::bench::*;

async fn refused(env: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut all = vec![("BRAIN_GATEWAY_URL", "http://127.0.0.1:1"), ("SIDECAR_JOURNAL__PATH", "/nonexistent/j.db")];
    all.extend(env);
    let all = all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut daemon = DaemonCommand::new(env!("CARGO_BIN_EXE_authentik-event-forwarder")).envs(all).spawn().unwrap();
    let exit = daemon.wait(DEADLINE).await.unwrap();
    (exit.code, daemon.stdout() + &daemon.stderr())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_way_to_tell_who_sends_it_does_not_start() {
    let with = ("AUTHENTIK_WEBHOOK_SECRET", SECRET);
    let header = ("SIDECAR_AUTHENTIK__AUTHENTICATION", "hmac-header");
    for (env, expected) in [
        (&[with][..], "SIDECAR_AUTHENTIK__AUTHENTICATION: must be set"),
        (&[header], "AUTHENTIK_WEBHOOK_SECRET_FILE: must be set"),
        (&[header, ("AUTHENTIK_WEBHOOK_SECRET", "hunter2")], "AUTHENTIK_WEBHOOK_SECRET: holds a secret of 7 bytes"),
        (&[with, ("SIDECAR_AUTHENTIK__AUTHENTICATION", "none")], "SIDECAR_AUTHENTIK__AUTHENTICATION"),
        (&[with, header, ("AUTHENTIK_URL", "http://authentik:9000")], "AUTHENTIK_TOKEN_FILE: must be set"),
        (&[with, header, ("AUTHENTIK_TOKEN", "t")], "AUTHENTIK_URL: must be set"),
        (&[with, header, ("AUTHENTIK_TOKEN", "t"), ("AUTHENTIK_URL", "http://u:hunter2@authentik")], "AUTHENTIK_URL: "),
        (&[with, header, ("SIDECAR_POLL__SINCE", "yesterday")], "SIDECAR_POLL__SINCE: must be a time"),
        (&[with, header, ("SIDECAR_ENRICHMENT__USER", "true")], "AUTHENTIK_URL: must be set"),
        (
            &[with, header, ("SIDECAR_ENRICHMENT__TENANT_GROUP_PATTERN", "tenant_*")],
            "SIDECAR_ENRICHMENT__TENANT_GROUP_PATTERN: must hold {id} once",
        ),
        (&[with, header, ("SIDECAR_AUTHENTIK__NAME", "A b")], "SIDECAR_AUTHENTIK__NAME: must be"),
    ] {
        let (code, said) = refused(env).await;
        assert_eq!(code, Some(78), "{env:?} {said}");
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(!said.contains("hunter2") && !said.contains(SECRET), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authentiks_api_it_takes_webhooks_and_says_so() {
    let bench = Bench::start("hmac-header", &[]).await;
    let (status, ready) = bench.readyz().await;
    assert_eq!(status, 200);
    let said = ready["parts"]["authentik"].as_str().unwrap();
    assert!(said.contains("AUTHENTIK_URL is not set"), "{said}");
}
