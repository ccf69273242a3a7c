//! `GET /api/v1/customers/:external_id/past_usage`, and how an invoice stands.

use super::*;

const PATH: &str = "/api/v1/customers/customer/past_usage?external_subscription_id=sub";

async fn lago_with_invoice(profile: Profile) -> (Lago, Invoice) {
    let lago = Lago::start(profile).await;
    for code in ["m", "unused"] {
        lago.server.put_metric(Metric::new(code, AggregationType::Sum, Some("v")));
    }
    lago.server.put_subscription(Subscription::active("sub", "customer", "plan", time("2026-01-01T00:00:00Z")));
    let invoice = Invoice::draft("sub", time("2026-07-01T00:00:00Z"), time("2026-07-31T23:59:59.999Z"));
    lago.server.put_invoice(invoice.clone());
    (lago, invoice)
}

async fn post_value(lago: &Lago, id: &str, at: &str, value: &str) {
    let seconds = time(at).as_second().to_string();
    let (status, answer) = lago.post(&usage(id, "m", &seconds, &format!(r#"{{"v":{value}}}"#))).await;
    assert_eq!(status, 200, "{answer}");
}

async fn counted(lago: &Lago) -> (u64, String) {
    let (_, body) = lago.get(PATH).await;
    let charge = &body["usage_periods"][0]["charges_usage"][0];
    (charge["events_count"].as_u64().unwrap(), charge["units"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_draft_is_counted_anew_and_what_is_final_stays_as_it_is() {
    for profile in Profile::ALL {
        let (lago, invoice) = lago_with_invoice(profile).await;
        post_value(&lago, "1", "2026-07-01T00:00:00Z", "1").await;
        post_value(&lago, "2", "2026-08-01T00:00:00Z", "10").await;
        assert_eq!(counted(&lago).await, (1, "1.0".to_owned()), "{profile:?}");
        post_value(&lago, "3", "2026-07-31T23:59:59Z", "100").await;
        assert_eq!(counted(&lago).await, (2, "101.0".to_owned()));
        let path = format!("/api/v1/invoices/{}", invoice.lago_id);
        assert_eq!(lago.get(&path).await.1["invoice"]["status"], "draft");

        lago.server.put_invoice(Invoice { finalized_at: Some(Timestamp::now()), ..invoice });
        post_value(&lago, "4", "2026-07-10T00:00:00Z", "1000").await;

        assert_eq!(lago.get(&path).await.1["invoice"]["status"], "finalized");
        assert_eq!(counted(&lago).await, (2, "101.0".to_owned()), "{profile:?}");
    }
}

#[tokio::test]
async fn the_answer_has_the_shape_of_lagos() {
    for profile in Profile::ALL {
        let (lago, invoice) = lago_with_invoice(profile).await;
        let before = Invoice::draft("sub", time("2026-06-01T00:00:00Z"), time("2026-06-30T23:59:59Z"));
        lago.server.put_invoice(before);
        lago.server.put_invoice(Invoice::draft("another", invoice.charges_from, invoice.charges_to));

        let (status, body) = lago.get(PATH).await;

        assert_eq!((status, body["meta"]["total_count"].as_u64()), (200, Some(2)));
        let expected = json!({
            "from_datetime": "2026-07-01T00:00:00Z",
            "to_datetime": "2026-07-31T23:59:59Z",
            "issuing_date": "2026-07-31",
            "currency": "EUR",
            "amount_cents": 0,
            "total_amount_cents": 0,
            "taxes_amount_cents": 0,
            "lago_invoice_id": invoice.lago_id,
            "charges_usage": [],
        });
        assert_eq!(body["usage_periods"][0], expected, "{profile:?}");
        assert_eq!(body["usage_periods"][1]["from_datetime"], "2026-06-01T00:00:00Z");
        let (_, one) = lago.get(&format!("{PATH}&periods_count=1")).await;
        assert_eq!(one["usage_periods"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn it_names_what_it_lacks_and_knows_subscriptions_that_have_ended() {
    let (lago, _) = lago_with_invoice(Profile::V1_16).await;
    let missing = validation_errors(json!({ "external_subscription_id": ["value_is_mandatory"] }));
    assert_eq!(lago.get("/api/v1/customers/customer/past_usage").await, missing);
    assert_eq!(lago.get(&format!("{PATH}&billable_metric_code=x")).await.0, 404);
    assert_eq!(lago.get("/api/v1/customers/a.b/past_usage?external_subscription_id=sub").await.0, 404);
    let (status, nobody) = lago.get("/api/v1/customers/nobody/past_usage?external_subscription_id=sub").await;
    assert_eq!((status, nobody["usage_periods"].as_array().unwrap().len()), (200, 0));
    lago.server.end_subscription("sub", time("2026-07-20T00:00:00Z"));
    assert_eq!(lago.get(PATH).await.1["usage_periods"].as_array().unwrap().len(), 1);
    assert_eq!(lago.get("/api/v1/invoices/x").await.0, 404);
}

#[tokio::test]
async fn what_is_paid_in_advance_is_on_no_periods_invoice_and_its_plan_says_so() {
    let (lago, _) = lago_with_invoice(Profile::V1_16).await;
    post_value(&lago, "1", "2026-07-01T00:00:00Z", "1").await;
    lago.server.put_metric(Metric { pay_in_advance: true, ..Metric::new("m", AggregationType::Sum, Some("v")) });

    let (_, body) = lago.get(PATH).await;
    assert_eq!(body["usage_periods"][0]["charges_usage"], json!([]));
    let (_, body) = lago.get("/api/v1/plans/plan").await;
    let charges = body["plan"]["charges"].as_array().unwrap().iter();
    let charges: Vec<_> =
        charges.map(|c| (c["billable_metric_code"].as_str(), c["pay_in_advance"].as_bool())).collect();
    assert_eq!(charges, [(Some("m"), Some(true)), (Some("unused"), Some(false))]);
    assert_eq!(lago.get("/api/v1/plans/another").await.0, 404);
}
