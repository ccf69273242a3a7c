//! `GET /api/v1/customers/:external_id/current_usage`.

use super::*;

const PATH: &str = "/api/v1/customers/customer/current_usage?external_subscription_id=sub";

/// A Lago with subscription `sub` in August 2026 and one metric.
async fn lago_with(profile: Profile, metric: Metric) -> Lago {
    let lago = Lago::start(profile).await;
    lago.server.put_metric(metric);
    lago.server.put_subscription(Subscription {
        current_billing_period_started_at: Some(time("2026-08-01T00:00:00Z")),
        current_billing_period_ending_at: Some(time("2026-08-31T23:59:59.999Z")),
        ..Subscription::active("sub", "customer", "plan", time("2026-01-15T00:00:00Z"))
    });
    lago
}

fn metric(aggregation_type: AggregationType) -> Metric {
    Metric::new("m", aggregation_type, Some("v"))
}

/// Posts one event for each timestamp and value of `v`.
async fn post_values(lago: &Lago, values: &[(&str, &str)]) {
    for (number, (timestamp, value)) in values.iter().enumerate() {
        let seconds = time(timestamp).as_second().to_string();
        let event = usage(&format!("t-{number}"), "m", &seconds, &format!(r#"{{"v":{value}}}"#));
        assert_eq!(lago.post(&event).await.0, 200);
    }
}

/// Units and number of events of the only charge.
async fn units(lago: &Lago) -> (String, u64) {
    let (status, body) = lago.get(PATH).await;
    assert_eq!(status, 200, "{body}");
    let charge = &body["customer_usage"]["charges_usage"][0];
    (charge["units"].as_str().unwrap().to_owned(), charge["events_count"].as_u64().unwrap())
}

async fn check(aggregation_type: AggregationType, values: &[&str], expected: (&str, u64)) {
    for profile in Profile::ALL {
        let lago = lago_with(profile, metric(aggregation_type)).await;
        let values: Vec<_> = values.iter().map(|value| ("2026-08-10T00:00:00Z", *value)).collect();
        post_values(&lago, &values).await;

        let (units, events) = units(&lago).await;

        assert_eq!((units.as_str(), events), expected, "{aggregation_type:?} {profile:?}");
    }
}

#[tokio::test]
async fn each_aggregation_adds_up_in_its_own_way() {
    check(AggregationType::Count, &["1", "null", r#""x""#], ("3.0", 3)).await;
    check(AggregationType::Sum, &["0.1"; 10], ("1.0", 10)).await;
    check(AggregationType::Sum, &["1e2", r#""2.50""#, "-0.25"], ("102.25", 3)).await;
    check(AggregationType::Max, &["-7", "-2.5", "-9"], ("-2.5", 3)).await;
    check(AggregationType::Latest, &["3", "1", "2"], ("2.0", 3)).await;
    check(AggregationType::UniqueCount, &[r#""a""#, r#""b""#, r#""a""#, "1", "null"], ("3.0", 3)).await;
    for aggregation_type in [AggregationType::Sum, AggregationType::Max, AggregationType::Latest] {
        check(aggregation_type, &[], ("0.0", 0)).await;
    }
}

#[tokio::test]
async fn what_is_no_plain_number_does_not_take_part() {
    check(AggregationType::Sum, &["1", r#""1e2""#, r#"" 2""#, r#""""#, "null", "{}", r#""+3""#], ("1.0", 1)).await;
}

#[tokio::test]
async fn a_number_is_read_as_floating_point_and_a_text_or_a_whole_number_to_its_last_digit() {
    for (value, units) in [
        ("0.10000000000000000001", "0.1"),
        (r#""0.10000000000000000001""#, "0.10000000000000000001"),
        ("12345678901234567890", "12345678901234567890.0"),
        ("9007199254740993.0", "9007199254740992.0"),
        ("25e-2", "0.25"),
    ] {
        check(AggregationType::Sum, &[value], (units, 1)).await;
    }
}

#[tokio::test]
async fn the_latest_is_told_by_its_timestamp_and_not_by_its_arrival() {
    let lago = lago_with(Profile::V1_16, metric(AggregationType::Latest)).await;
    post_values(&lago, &[("2026-08-20T00:00:00Z", "5"), ("2026-08-10T00:00:00Z", "9")]).await;

    assert_eq!(units(&lago).await, ("5.0".to_owned(), 2));
}

#[tokio::test]
async fn a_removed_value_does_not_count_any_more() {
    let lago = lago_with(Profile::V1_39, metric(AggregationType::UniqueCount)).await;
    for (id, value, operation) in [("1", "a", "add"), ("2", "b", "add"), ("3", "a", "remove")] {
        let properties = format!(r#"{{"v":"{value}","operation_type":"{operation}"}}"#);
        lago.post(&usage(id, "m", "1786000000", &properties)).await;
    }

    assert_eq!(units(&lago).await, ("1.0".to_owned(), 1));
}

#[tokio::test]
async fn only_the_present_billing_period_counts_unless_the_metric_recurs() {
    let values = [
        ("2026-01-10T00:00:00Z", "1"),
        ("2026-07-31T23:59:59Z", "10"),
        ("2026-08-01T00:00:00Z", "100"),
        ("2026-08-31T23:59:59Z", "1000"),
        ("2026-09-01T00:00:00Z", "10000"),
    ];
    let lago = lago_with(Profile::V1_16, metric(AggregationType::Sum)).await;
    post_values(&lago, &values).await;
    assert_eq!(units(&lago).await.0, "1100.0");

    lago.server.put_metric(Metric { recurring: true, ..metric(AggregationType::Sum) });
    assert_eq!(units(&lago).await.0, "1110.0", "since the subscription began");
}

#[tokio::test]
async fn events_of_other_subscriptions_and_codes_do_not_count() {
    let lago = lago_with(Profile::V1_16, metric(AggregationType::Count)).await;
    lago.post(&event("other", "1")).await;
    lago.post(&usage("2", "another", "1786000000", "{}")).await;

    assert_eq!(units(&lago).await, ("0.0".to_owned(), 0));
}

#[tokio::test]
async fn the_answer_has_the_shape_of_lagos() {
    for profile in Profile::ALL {
        let metric = metric(AggregationType::Sum);
        let lago = lago_with(profile, metric.clone()).await;

        let (_, body) = lago.get(PATH).await;

        let mut charge = json!({ "lago_id": metric.lago_id, "charge_model": "standard", "invoice_display_name": null });
        if profile == Profile::ClickHouse {
            charge["code"] = json!("m");
        }
        let expected = json!({ "customer_usage": {
            "from_datetime": "2026-08-01T00:00:00Z",
            "to_datetime": "2026-08-31T23:59:59Z",
            "issuing_date": "2026-08-31",
            "currency": "EUR",
            "amount_cents": 0,
            "taxes_amount_cents": 0,
            "total_amount_cents": 0,
            "lago_invoice_id": null,
            "charges_usage": [{
                "units": "0.0",
                "events_count": 0,
                "amount_cents": 0,
                "amount_currency": "EUR",
                "charge": charge,
                "billable_metric": { "lago_id": metric.lago_id, "name": "m", "code": "m", "aggregation_type": "sum_agg" },
                "filters": [],
                "grouped_usage": [],
            }],
        }});
        assert_eq!(body, expected, "{profile:?}");
    }
}

#[tokio::test]
async fn without_active_subscription_it_is_not_allowed_and_without_customer_not_found() {
    let lago = lago_with(Profile::V1_16, metric(AggregationType::Count)).await;
    let not_allowed = (405, json!({ "status": 405, "error": "Method Not Allowed", "code": "no_active_subscription" }));

    assert_eq!(lago.get("/api/v1/customers/customer/current_usage").await, not_allowed);
    assert_eq!(lago.get("/api/v1/customers/customer/current_usage?external_subscription_id=x").await, not_allowed);
    assert_eq!(lago.get("/api/v1/customers/nobody/current_usage?external_subscription_id=sub").await.0, 404);
    lago.server.set_faults(Faults { no_active_subscription: true, ..Faults::default() });
    assert_eq!(lago.get(PATH).await, not_allowed);
    lago.server.set_faults(Faults::default());
    assert_eq!(lago.get(PATH).await.0, 200);
    lago.server.end_subscription("sub", time("2026-08-20T00:00:00Z"));
    assert_eq!(lago.get(PATH).await, not_allowed);
}

#[tokio::test]
async fn usage_shows_events_only_once_they_are_processed() {
    let lago = lago_with(Profile::V1_16, metric(AggregationType::Count)).await;
    lago.server.set_faults(Faults { usage_lag: Duration::from_secs(3_600), ..Faults::default() });
    post_values(&lago, &[("2026-08-10T00:00:00Z", "1")]).await;

    assert_eq!(units(&lago).await.1, 0);
    assert_eq!(lago.stored().len(), 1);
    lago.server.set_faults(Faults::default());
    assert_eq!(units(&lago).await.1, 1);
}
