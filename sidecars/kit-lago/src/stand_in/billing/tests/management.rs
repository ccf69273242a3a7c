//! The catalogue over HTTP: what is taken, passed over in silence, and refused, each version by its own rules.

use super::*;

impl Lago {
    async fn send(&self, method: http::Method, path: &str, body: Value) -> (u16, Value) {
        let request = self.request(method, path).header("content-type", "application/json");
        answer(request.body(body.to_string())).await
    }

    async fn create(&self, path: &str, body: Value) -> (u16, Value) {
        self.send(http::Method::POST, &format!("/api/v1/{path}"), body).await
    }

    async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.send(http::Method::PUT, &format!("/api/v1/{path}"), body).await
    }

    /// A metric, and its id.
    async fn metric(&self, code: &str) -> String {
        let metric = json!({ "billable_metric": { "code": code, "name": "M", "aggregation_type": "sum_agg", "field_name": "x" } });
        let (status, made) = self.create("billable_metrics", metric).await;
        assert_eq!(status, 200, "{made}");
        made["billable_metric"]["lago_id"].as_str().unwrap().to_owned()
    }

    async fn plan(&self, code: &str, charges: Value) -> (u16, Value) {
        let plan = json!({ "plan": { "code": code, "name": "P", "interval": "monthly", "amount_cents": 100,
            "amount_currency": "USD", "pay_in_advance": false, "charges": charges } });
        self.create("plans", plan).await
    }
}

fn standard(metric: &str, amount: &str) -> Value {
    json!({ "billable_metric_id": metric, "charge_model": "standard", "properties": { "amount": amount, "other": 1 } })
}

#[tokio::test]
async fn what_is_there_already_is_refused_with_its_code() {
    for profile in Profile::ALL {
        let lago = Lago::start(profile).await;
        let bodies = [
            ("taxes", json!({ "tax": { "code": "t", "name": "T", "rate": 20 } })),
            (
                "billable_metrics",
                json!({ "billable_metric": { "code": "m", "name": "M", "aggregation_type": "count_agg" } }),
            ),
            (
                "plans",
                json!({ "plan": { "code": "p", "name": "P", "interval": "monthly", "amount_cents": 0,
                "amount_currency": "USD", "pay_in_advance": false } }),
            ),
            ("add_ons", json!({ "add_on": { "code": "a", "name": "A", "amount_cents": 1, "amount_currency": "USD" } })),
            (
                "coupons",
                json!({ "coupon": { "code": "c", "name": "C", "coupon_type": "percentage", "percentage_rate": 10,
                "frequency": "once", "expiration": "no_expiration" } }),
            ),
        ];
        for (path, body) in bodies {
            let (status, made) = lago.create(path, body.clone()).await;
            assert_eq!(status, 200, "{path}: {made}");
            let exists = json!({ "code": ["value_already_exist"] });
            assert_eq!(lago.create(path, body).await, validation_errors(exists), "{profile:?} {path}");
            let (_, listed) = lago.get(&format!("/api/v1/{path}?per_page=1")).await;
            assert_eq!(listed["meta"]["total_count"], 1);
            assert_eq!(lago.create(path, json!({})).await.0, 400, "no root key");
            assert_eq!(lago.get(&format!("/api/v1/{path}/nothing")).await.0, 404);
        }
        let endpoint = json!({ "webhook_endpoint": { "webhook_url": "http://a.test/", "signature_algo": "jwt" } });
        assert_eq!(lago.create("webhook_endpoints", endpoint.clone()).await.0, 200);
        let exists = json!({ "webhook_url": ["value_already_exist"] });
        assert_eq!(lago.create("webhook_endpoints", endpoint).await, validation_errors(exists));
        assert_eq!(lago.server.counts().managed_writes, 6);
    }
}

#[tokio::test]
async fn charges_that_are_not_named_are_deleted_and_properties_that_no_model_knows_are_dropped() {
    let lago = Lago::start(Profile::V1_16).await;
    let metric = lago.metric("m").await;
    let (status, made) = lago.plan("p", json!([standard(&metric, "1"), standard(&metric, "2")])).await;
    assert_eq!(status, 200, "{made}");
    let charges = made["plan"]["charges"].as_array().unwrap();
    assert_eq!((charges.len(), &charges[0]["properties"]), (2, &json!({ "amount": "1" })));

    let named = json!({ "id": charges[1]["lago_id"], "billable_metric_id": metric, "charge_model": "standard",
        "properties": { "amount": "3" } });
    let (_, changed) = lago.put("plans/p", json!({ "plan": { "charges": [named, standard(&metric, "4")] } })).await;

    let after = changed["plan"]["charges"].as_array().unwrap();
    assert_eq!(after.len(), 2);
    assert_eq!((&after[0]["lago_id"], &after[0]["properties"]["amount"]), (&charges[1]["lago_id"], &json!("3")));
    assert!(charges.iter().all(|old| old["lago_id"] != after[1]["lago_id"]));
    let (status, unknown) = lago.plan("q", json!([standard("00000000-0000-4000-8000-000000000000", "1")])).await;
    assert_eq!((status, &unknown["code"]), (404, &json!("billable_metrics_not_found")));
    let package = json!([{ "billable_metric_id": metric, "charge_model": "package", "properties": { "amount": "1" } }]);
    assert_eq!(lago.plan("q", package).await, validation_errors(json!({ "properties": ["invalid_free_units"] })));
    // With the metric its charges go.
    lago.send(http::Method::DELETE, "/api/v1/billable_metrics/m", json!({})).await;
    assert_eq!(lago.get("/api/v1/plans/p").await.1["plan"]["charges"], json!([]));
}

#[tokio::test]
async fn what_is_in_use_changes_only_in_part_and_nothing_is_said() {
    let lago = Lago::start(Profile::V1_16).await;
    let metric = lago.metric("m").await;
    let (_, made) = lago.plan("p", json!([standard(&metric, "1")])).await;
    lago.server.put_subscription(Subscription::active("s", "c", "p", time("2026-08-01T00:00:00Z")));

    let fields = json!({ "billable_metric": { "name": "N", "field_name": "y" } });
    let (status, changed) = lago.put("billable_metrics/m", fields).await;
    assert_eq!(
        (status, &changed["billable_metric"]["name"], &changed["billable_metric"]["field_name"]),
        (200, &json!("N"), &json!("x"))
    );
    let charge = json!({ "id": made["plan"]["charges"][0]["lago_id"], "billable_metric_id": metric, "charge_model": "package",
        "properties": { "amount": "0", "free_units": 5, "package_size": 1 } });
    let fields = json!({ "plan": { "interval": "yearly", "amount_cents": 7, "charges": [charge] } });
    let (status, changed) = lago.put("plans/p", fields).await;
    let plan = &changed["plan"];
    assert_eq!((status, &plan["interval"], &plan["amount_cents"]), (200, &json!("monthly"), &json!(7)));
    // The old model keeps what it knows of the new one's properties.
    assert_eq!(
        (&plan["charges"][0]["charge_model"], &plan["charges"][0]["properties"]),
        (&json!("standard"), &json!({ "amount": "0" }))
    );
}

#[tokio::test]
async fn an_endpoint_without_its_algorithm_is_an_error_until_the_head() {
    for (profile, expected, most) in
        [(Profile::V1_16, 500, 5), (Profile::V1_39, 500, 10), (Profile::ClickHouse, 200, 10)]
    {
        let lago = Lago::start(profile).await;
        let endpoint = |url: &str, algorithm: &str| json!({ "webhook_endpoint": { "webhook_url": url, "signature_algo": algorithm } });
        let (_, made) = lago.create("webhook_endpoints", endpoint("http://a.test/", "hmac")).await;
        let id = made["webhook_endpoint"]["lago_id"].as_str().unwrap();

        let (status, changed) = lago
            .put(&format!("webhook_endpoints/{id}"), json!({ "webhook_endpoint": { "webhook_url": "http://b.test/" } }))
            .await;
        assert_eq!(status, expected, "{profile:?}");
        assert!(status == 500 || changed["webhook_endpoint"]["signature_algo"] == "hmac");
        assert_eq!(
            lago.create("webhook_endpoints", endpoint("http://c.test/", "md5")).await.0,
            500,
            "nobody catches it"
        );
        assert_eq!(lago.create("webhook_endpoints", endpoint("gopher://c.test/", "jwt")).await.0, 422);
        for n in 1..most {
            assert_eq!(lago.create("webhook_endpoints", endpoint(&format!("http://{n}.test/"), "jwt")).await.0, 200);
        }
        let (status, refused) = lago.create("webhook_endpoints", endpoint("http://more.test/", "jwt")).await;
        assert_eq!(status, 422);
        assert!(refused["error_details"]["base"][0].as_str().unwrap().contains("Maximum"), "a sentence: {refused}");
        assert_eq!(made["webhook_endpoint"].get("event_types").is_some(), profile == Profile::ClickHouse);
    }
}

#[tokio::test]
async fn features_and_entitlements_come_with_their_version() {
    let lago = Lago::start(Profile::V1_16).await;
    let feature = json!({ "feature": { "code": "f", "privileges": [{ "code": "max", "value_type": "integer" }] } });
    assert_eq!(lago.create("features", feature.clone()).await.1["code"], "resource_not_found");
    assert_eq!(lago.get("/api/v1/plans/p/entitlements").await.1["code"], "resource_not_found");

    let lago = Lago::start(Profile::V1_39).await;
    let (_, made) = lago.create("features", feature).await;
    assert!(made["feature"].get("lago_id").is_none());
    lago.plan("p", json!([])).await;
    let path = "/api/v1/plans/p/entitlements";
    let grant = |value: Value| json!({ "entitlements": { "f": { "max": value } } });
    assert_eq!(lago.send(http::Method::PATCH, path, grant(json!("many"))).await.0, 422);
    let (_, granted) = lago.send(http::Method::PATCH, path, grant(json!(3))).await;
    assert_eq!(granted["entitlements"][0]["privileges"]["max"]["value"], 3);
    let (_, replaced) = lago.send(http::Method::POST, path, json!({ "entitlements": {} })).await;
    assert_eq!(replaced["entitlements"], json!([]));
    assert_eq!(
        lago.send(http::Method::PATCH, path, json!({ "entitlements": { "g": {} } })).await.1["code"],
        "feature_not_found"
    );
}

#[tokio::test]
async fn without_a_key_nothing_is_managed() {
    let lago = Lago::start(Profile::V1_16).await;
    for (method, path) in
        [(http::Method::GET, "plans"), (http::Method::POST, "plans"), (http::Method::DELETE, "taxes/x")]
    {
        let request = lago.client.request(method, format!("{}/api/v1/{path}", lago.server.url()));
        assert_eq!(answer(request).await.0, 401);
    }
}
