//! Metrics, subscriptions, customers, and what is neither.

use super::*;

#[tokio::test]
async fn the_version_is_told_to_everybody() {
    for (profile, version) in
        [(Profile::V1_16, "v1.16.0"), (Profile::V1_39, "v1.39.0"), (Profile::ClickHouse, "v1.51.0")]
    {
        let lago = Lago::start(profile).await;

        let health = answer(lago.client.get(format!("{}/health", lago.server.url()))).await;

        let github_url = format!("https://github.com/getlago/lago-api/tree/{version}");
        assert_eq!(health, (200, json!({ "version": version, "github_url": github_url, "message": "Success" })));
    }
}

#[tokio::test]
async fn what_no_route_knows_is_not_found_with_or_without_key() {
    let lago = Lago::start(Profile::V1_16).await;
    let missing = (404, json!({ "status": 404, "error": "Not Found", "code": "resource_not_found" }));
    for path in ["/", "/api/v1/health", "/api/v1/plans/x/y", "/api/v2/events", "/api/v1/customers/a.b/current_usage"] {
        assert_eq!(lago.get(path).await, missing, "{path}");
        assert_eq!(answer(lago.client.get(format!("{}{path}", lago.server.url()))).await, missing, "{path}");
    }
    assert_eq!(answer(lago.request(http::Method::DELETE, "/api/v1/events/x")).await, missing);
    assert_eq!(answer(lago.posting("/api/v1/wallets", "{}")).await, missing);
}

#[tokio::test]
async fn an_empty_list_has_page_zero() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let meta =
            json!({ "current_page": 0, "next_page": null, "prev_page": null, "total_pages": 0, "total_count": 0 });
        for list in ["billable_metrics", "subscriptions", "events"] {
            let answer = lago.get(&format!("/api/v1/{list}")).await;
            assert_eq!(answer, (200, json!({ list: [], "meta": meta })), "{profile:?}");
        }
    }
}

#[tokio::test]
async fn metrics_are_listed_in_pages_and_found_by_code() {
    let lago = Lago::start(Profile::V1_39).await;
    for number in 0..3 {
        lago.server.put_metric(Metric::new(&format!("v{number}.0/gb"), AggregationType::Sum, Some("gb")));
    }
    lago.server.put_metric(Metric { recurring: true, ..Metric::new("v0.0/gb", AggregationType::Max, Some("tb")) });

    let (_, first) = lago.get("/api/v1/billable_metrics?page=1&per_page=2").await;
    let (_, second) = lago.get("/api/v1/billable_metrics?page=2&per_page=2").await;
    let (_, shown) = lago.get("/api/v1/billable_metrics/v0.0%2Fgb").await;

    assert_eq!(first["billable_metrics"].as_array().unwrap().len(), 2);
    assert_eq!(first["meta"]["next_page"], 2);
    assert_eq!(second["billable_metrics"], json!([shown["billable_metric"]]));
    let metric = &shown["billable_metric"];
    assert_eq!((&metric["aggregation_type"], &metric["field_name"]), (&json!("max_agg"), &json!("tb")));
    assert_eq!((&metric["recurring"], &metric["filters"]), (&json!(true), &json!([])));
    assert_eq!(lago.get("/api/v1/billable_metrics/x").await.1["code"], "billable_metric_not_found");
}

fn with_four_subscriptions(lago: &Lago) {
    let old = Subscription {
        status: SubscriptionStatus::Terminated,
        ..Subscription::active("upgraded", "customer-1", "basic", time("2026-01-01T00:00:00Z"))
    };
    let pending = Subscription {
        status: SubscriptionStatus::Pending,
        started_at: None,
        ..Subscription::active("later", "customer-1", "basic", time("2027-01-01T00:00:00Z"))
    };
    lago.server.put_subscription(Subscription::active("other", "customer-2", "pro", time("2026-03-01T00:00:00Z")));
    lago.server.put_subscription(old);
    lago.server.put_subscription(Subscription::active("upgraded", "customer-1", "pro", time("2026-02-01T00:00:00Z")));
    lago.server.put_subscription(pending);
}

#[tokio::test]
async fn only_active_subscriptions_are_listed_unless_a_status_is_asked_for() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        with_four_subscriptions(&lago);
        let list = async |query: &str| {
            let (_, body) = lago.get(&format!("/api/v1/subscriptions{query}")).await;
            let name = |found: &Value| {
                format!("{}/{}", found["external_id"].as_str().unwrap(), found["plan_code"].as_str().unwrap())
            };
            let mut names: Vec<_> = body["subscriptions"].as_array().unwrap().iter().map(name).collect();
            if profile != Profile::V1_16 {
                // Later versions begin with the youngest.
                names.reverse();
            }
            names
        };

        assert_eq!(list("").await, ["upgraded/pro", "other/pro"], "{profile:?}");
        assert_eq!(list("?external_customer_id=customer-2&plan_code=pro").await, ["other/pro"]);
        assert_eq!(list("?status[]=terminated").await, ["upgraded/basic"]);
        assert_eq!(list("?status%5B%5D=pending&status[]=terminated").await, ["upgraded/basic", "later/basic"]);
        assert_eq!(list("?status[]=nonsense").await, ["upgraded/pro", "other/pro"]);
        assert_eq!(list("?external_customer_id=nobody").await, [""; 0]);
    }
}

#[tokio::test]
async fn a_subscription_is_shown_while_it_is_active() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let started_at = time("2026-08-01T08:30:00.125Z");
        lago.server.put_subscription(Subscription {
            current_billing_period_started_at: Some(time("2026-08-01T00:00:00Z")),
            current_billing_period_ending_at: Some(time("2026-08-31T23:59:59Z")),
            ..Subscription::active("sub", "customer", "plan", started_at)
        });

        let (status, body) = lago.get("/api/v1/subscriptions/sub").await;

        let shown = &body["subscription"];
        assert_eq!(status, 200);
        assert_eq!((&shown["status"], &shown["plan_code"]), (&json!("active"), &json!("plan")));
        assert_eq!((&shown["external_customer_id"], &shown["billing_time"]), (&json!("customer"), &json!("calendar")));
        assert_eq!(shown["subscription_at"], "2026-08-01T08:30:00Z");
        let is_head = profile == Profile::ClickHouse;
        assert_eq!(shown["started_at"], if is_head { "2026-08-01T08:30:00.125Z" } else { "2026-08-01T08:30:00Z" });
        // The first period begins with the subscription.
        let told = (profile != Profile::V1_16).then(|| json!("2026-08-01T08:30:00Z"));
        assert_eq!(shown.get("current_billing_period_started_at"), told.as_ref(), "{profile:?}");
        let told = (profile != Profile::V1_16).then(|| json!("2026-08-31T23:59:59Z"));
        assert_eq!(shown.get("current_billing_period_ending_at"), told.as_ref());

        assert!(lago.server.end_subscription("sub", time("2026-08-20T00:00:00Z")));
        assert!(!lago.server.end_subscription("sub", time("2026-08-21T00:00:00Z")));
        assert_eq!(lago.get("/api/v1/subscriptions/sub").await.1["code"], "subscription_not_found");
        let (_, ended) = lago.get("/api/v1/subscriptions/sub?status=terminated").await;
        assert_eq!(ended["subscription"]["terminated_at"], "2026-08-20T00:00:00Z");
    }
}

#[tokio::test]
async fn a_customer_exists_by_its_subscription_or_by_itself() {
    let lago = Lago::start(Profile::V1_16).await;
    lago.server.put_subscription(Subscription::active("sub", "customer", "plan", time("2026-08-01T00:00:00Z")));
    lago.server.put_customer("lonely");

    for id in ["customer", "lonely"] {
        let (status, body) = lago.get(&format!("/api/v1/customers/{id}")).await;
        assert_eq!((status, &body["customer"]["external_id"]), (200, &json!(id)));
    }
    assert_eq!(lago.get("/api/v1/customers/nobody").await.1["code"], "customer_not_found");
    assert_eq!(lago.get("/api/v1/customers/lonely.json").await.0, 200, "what follows a dot is a format");
    assert_eq!(lago.get("/api/v1/customers/a.b.c").await.1["code"], "resource_not_found");
}
