//! The events API, and what else is read.

use serde_json::json;

use super::*;
use crate::event::Event;

/// Events a second apart, so that their order is in their times.
fn fill(authentik: &AuthentikServer, count: i64) -> Vec<String> {
    let ada = User::new(5, "ada");
    let begin = 1_800_000_000_000_000;
    (0..count).map(|n| authentik.happen(NewEvent::login(&ada).at_micros(begin + n * 1_000_000)).dashed()).collect()
}

fn pks(page: &Value) -> Vec<String> {
    page["results"].as_array().unwrap().iter().map(|event| event["pk"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_are_as_large_as_the_version_allows_and_the_newest_comes_first() {
    for (generation, default, most) in [
        (Generation::V2024_10, 100, 250),
        (Generation::V2025_8, 100, 250),
        (Generation::V2026_2, 20, 100),
        (Generation::V2026_8, 20, 100),
    ] {
        let authentik = AuthentikServer::start(generation).await.unwrap();
        let all = fill(&authentik, 250);

        let (_, page) = get(&authentik, "events/events/").await;
        assert_eq!(page["results"].as_array().unwrap().len(), default, "{generation:?}");
        assert_eq!(pks(&page)[0], all[249]);
        let (_, page) = get(&authentik, "events/events/?page_size=1000").await;
        assert_eq!(page["results"].as_array().unwrap().len(), most, "{generation:?}");
        let (_, page) = get(&authentik, "events/events/?ordering=created&page_size=10&page=25").await;
        assert_eq!(pks(&page), all[240..]);
        assert_eq!(
            page["pagination"],
            json!({
                "next": 0, "previous": 24, "count": 250, "current": 25, "total_pages": 25, "start_index": 241,
                "end_index": 250,
            })
        );
        for beyond in ["26", "0", "-1", "x"] {
            let (status, page) = get(&authentik, &format!("events/events/?page_size=10&page={beyond}")).await;
            assert_eq!((status, &page["detail"]), (404, &json!("Invalid page.")), "{beyond}");
        }
    }
}

#[tokio::test]
async fn nothing_there_is_one_empty_page() {
    let authentik = AuthentikServer::start(Generation::V2026_2).await.unwrap();

    let (status, page) = get(&authentik, "events/events/").await;

    assert_eq!((status, &page["results"], &page["pagination"]["next"]), (200, &json!([]), &json!(0)));
}

#[tokio::test]
async fn actions_are_filtered_as_the_version_can() {
    let ada = User::new(5, "ada");
    for generation in Generation::ALL {
        let authentik = AuthentikServer::start(generation).await.unwrap();
        for action in ["login", "login_failed", "logout", "custom_login_elsewhere"] {
            authentik.happen(NewEvent::of(&ada, action, json!({})));
        }
        let found = async |query: &str| {
            let (_, page) = get(&authentik, &format!("events/events/?ordering=created&{query}")).await;
            let found = page["results"].as_array().unwrap().iter();
            found.map(|event| event["action"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };

        assert_eq!(found("action=login").await, ["login", "login_failed", "custom_login_elsewhere"], "{generation:?}");
        assert_eq!(found("action=login&action=logout").await, ["logout"]);
        let several = found("actions=login&actions=logout").await;
        if generation >= Generation::V2025_8 {
            assert_eq!(several, ["login", "logout"]);
        } else {
            assert_eq!(several.len(), 4, "an unknown filter is none");
        }
        assert!(found("search=created+%3E+%222026-01-01%22").await.is_empty());
    }
}

#[tokio::test]
async fn an_event_is_what_our_reader_takes_it_for() {
    let authentik = AuthentikServer::start(Generation::V2024_10).await.unwrap();
    let ada = User::new(5, "ada");
    let pk = authentik.happen(NewEvent::model(&ada, "updated", "authentik_core", "group", "0f0e", "staff"));

    let (status, shown) = get(&authentik, &format!("events/events/{}/", pk.dashed())).await;

    assert_eq!(status, 200);
    let text = shown.to_string();
    let event = Event::read(&text).unwrap();
    assert_eq!((event.pk, event.action.as_str(), event.user.pk), (pk, "model_updated", Some(5)));
    assert_eq!(event.context.model.unwrap().model_name, "group");
    let created = shown["created"].as_str().unwrap();
    assert!(created.ends_with('Z') && created.len() == "2026-11-22T13:27:00.123456Z".len(), "{created}");
}

#[tokio::test]
async fn who_may_not_is_refused_and_a_rotated_token_is_no_longer_known() {
    let authentik = AuthentikServer::start(Generation::V2026_2).await.unwrap();
    let old = authentik.token();

    assert_eq!(get_as(&authentik, "another", "events/events/").await.0, 403);
    assert_eq!(get(&authentik, "core/users/").await.0, 200);
    assert_eq!(get(&authentik, "events/transports/").await.0, 403, "not what the poller needs");
    assert_eq!(get_as(&authentik, &authentik.admin_token(), "events/transports/").await.0, 200);
    authentik.configure(|configuration| configuration.set_permissions(&["authentik_core.view_user"]));
    assert_eq!(get(&authentik, "events/events/").await.0, 403);
    assert_eq!(get(&authentik, "admin/version/").await, (200, get(&authentik, "admin/version/").await.1));
    authentik.configure(|configuration| configuration.rotate_service_token("a-new-one"));
    assert_eq!(get_as(&authentik, &old, "core/users/me/").await.0, 403);
    assert_eq!(get(&authentik, "core/users/me/").await.1["user"]["username"], crate::envelope::SERVICE_ACCOUNT);
    let bare = client().get(format!("{}/api/v3/events/events/", authentik.url())).send().await.unwrap();
    assert_eq!(bare.status(), 403);
}

#[tokio::test]
async fn while_it_starts_the_router_answers() {
    for (generation, status, retry_after) in
        [(Generation::V2024_10, 502, None), (Generation::V2026_2, 503, Some("5".to_owned()))]
    {
        let authentik = AuthentikServer::start(generation).await.unwrap();
        authentik.set_starting(true);

        let answer = client().get(format!("{}/api/v3/admin/version/", authentik.url())).send().await.unwrap();

        assert_eq!(answer.status(), status);
        let header = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header, retry_after);
        authentik.set_starting(false);
        assert_eq!(get(&authentik, "admin/version/").await.1["version_current"], generation.version());
    }
}

#[tokio::test]
async fn what_goes_wrong_goes_wrong_once_each() {
    let authentik = AuthentikServer::start(Generation::V2026_2).await.unwrap();
    fill(&authentik, 5);
    authentik.fail_next([Fault::Answer(500), Fault::TooMany(7), Fault::Close, Fault::Cut]);
    let url = format!("{}/api/v3/events/events/", authentik.url());
    let ask = || client().get(&url).bearer_auth(authentik.token()).send();

    assert_eq!(ask().await.unwrap().status(), 500);
    let throttled = ask().await.unwrap();
    assert_eq!((throttled.status().as_u16(), &throttled.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    assert!(ask().await.is_err());
    let cut = ask().await.unwrap();
    assert_eq!(cut.status(), 200);
    assert!(cut.text().await.is_err());
    assert_eq!(ask().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_row_that_spoils_a_page_spoils_it_until_it_is_mended_and_each_failure_is_an_event() {
    let authentik = AuthentikServer::start(Generation::V2024_10).await.unwrap();
    let all = fill(&authentik, 20);
    let spoiled = authentik.pks()[3];
    authentik.spoil(spoiled);

    for n in 1..3 {
        assert_eq!(get(&authentik, "events/events/?page_size=10&page=2").await.0, 500, "it is the fourth one");
        assert_eq!(authentik.counts().events, 20 + n);
    }
    assert_eq!(get(&authentik, &format!("events/events/{}/", spoiled.dashed())).await.0, 500);
    let (status, page) = get(&authentik, "events/events/?page_size=10").await;
    assert_eq!((status, &page["results"][0]["action"]), (200, &json!("system_exception")));

    authentik.mend(spoiled);
    let (_, page) = get(&authentik, "events/events/?page_size=50").await;
    assert!(all.iter().all(|pk| pks(&page).contains(pk)));
}

#[tokio::test]
async fn a_row_is_seen_where_its_time_is_and_not_before_its_commit() {
    let authentik = AuthentikServer::start(Generation::V2026_2).await.unwrap();
    let ada = User::new(5, "ada");
    let late = authentik.begin(NewEvent::login(&ada));
    let next = authentik.happen(NewEvent::login(&ada));

    let (_, before) = get(&authentik, "events/events/").await;
    authentik.commit(late);
    let (_, after) = get(&authentik, "events/events/").await;

    assert_eq!(pks(&before), [next.dashed()]);
    assert_eq!(pks(&after), [next.dashed(), late.dashed()]);
}

#[tokio::test]
async fn who_is_deleted_takes_what_he_did_along_and_so_does_time() {
    let authentik = AuthentikServer::start(Generation::V2026_2).await.unwrap();
    let begin = 1_800_000_000_000_000;
    for n in 0..10 {
        authentik.happen(NewEvent::login(&User::new(n % 2, "user")).at_micros(begin + n * 1_000_000));
    }

    assert_eq!(authentik.delete_user(1), 5);
    assert_eq!(authentik.expire_before(begin + 4_000_000), 2);

    let (_, page) = get(&authentik, "events/events/").await;
    assert_eq!(page["pagination"]["count"], 3);
    assert_eq!(authentik.counts().deleted, 7);
}

#[tokio::test]
async fn without_a_slash_at_the_end_there_is_only_a_redirect() {
    let authentik = AuthentikServer::start(Generation::V2026_2).await.unwrap();

    let answer = client().get(format!("{}/api/v3/events/events", authentik.url())).send().await.unwrap();

    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (301, &"/api/v3/events/events/".parse().unwrap())
    );
}

#[tokio::test]
async fn an_upgrade_does_to_objects_what_its_migrations_do() {
    let authentik = AuthentikServer::start(Generation::V2024_10).await.unwrap();
    let token = authentik.admin_token();
    let look = async |path: &str| get_as(&authentik, &token, path).await.1["results"][0].clone();
    let group = look("events/rules/").await["group"].clone();
    assert!(look("events/transports/").await["webhook_mapping"].is_string() && group.is_string());

    // The mapping of the body is removed, and not renamed: webhooks are unmapped until the blueprint is applied again.
    authentik.set_generation(Generation::V2025_4);
    let transport = look("events/transports/").await;
    assert!(transport.get("webhook_mapping").is_none());
    assert_eq!(
        (&transport["webhook_mapping_body"], &transport["webhook_mapping_headers"]),
        (&json!(null), &json!(null))
    );
    assert_eq!(look("events/rules/").await["group"], group);

    authentik.set_generation(Generation::V2025_8);
    let rule = look("events/rules/").await;
    assert_eq!((rule.get("group"), &rule["destination_group"]), (None, &group), "renamed");

    authentik.apply_blueprint();
    let transport = look("events/transports/").await;
    assert!(transport["webhook_mapping_body"].is_string() && transport["webhook_mapping_headers"].is_string());
}

#[tokio::test]
async fn objects_are_found_by_their_fields_and_their_keys() {
    let authentik = AuthentikServer::start(Generation::V2025_8).await.unwrap();
    authentik.add_user(&User::new(9, "grace"), &["tenant_acme_admins"], json!({ "tenant_id": "acme" }));
    let token = authentik.admin_token();

    let (_, users) = get(&authentik, "core/users/?username=grace").await;
    assert_eq!(users["results"][0]["attributes"]["tenant_id"], "acme");
    assert_eq!(users["results"][0]["groups_obj"][0]["name"], "tenant_acme_admins");
    assert_eq!(get(&authentik, "core/users/9/").await.1["username"], "grace");
    assert_eq!(get(&authentik, "core/users/99/").await.0, 404);
    let (_, transports) = get_as(&authentik, &token, "events/transports/?name=outrigger-event-forwarder").await;
    assert_eq!(transports["results"][0]["send_once"], true);
    assert!(transports["results"][0]["webhook_mapping_body"].is_string());
    let (status, found) = get_as(&authentik, &token, "core/tokens/outrigger-event-forwarder/").await;
    assert_eq!((status, &found["expiring"]), (200, &json!(false)));
}
