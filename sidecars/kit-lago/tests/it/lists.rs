//! Lago's lists are read whole, or not at all.

use kit::client::{ClientOptions, http_client};
use kit::secret::Secret;
use kit_lago::api::{ApiError, LagoApi};
use kit_lago::stand_in::billing::{AggregationType, Effect, Fault, Faults, LagoServer, Metric, On, Profile, When};

const KEY: &str = "lago-api-key-0123456789";

/// A Lago with so many metrics.
async fn lago(metrics: usize) -> (LagoServer, LagoApi) {
    let lago = LagoServer::start(Profile::V1_16, Secret::from(KEY.to_owned())).await.unwrap();
    for n in 0..metrics {
        lago.put_metric(Metric::new(&format!("m-{n}"), AggregationType::Count, None));
    }
    let client = http_client(&ClientOptions::default()).unwrap();
    let api = LagoApi::new(client, &lago.url(), &Secret::from(KEY.to_owned())).unwrap();
    (lago, api)
}

/// The pages of these requests are empty.
fn shifted(requests: &[u64]) -> Faults {
    // A rule does not count the requests that one before it has concerned.
    let rules = (0..).zip(requests).map(|(before, nth)| When::Nth(nth - before));
    let rules = rules.map(|when| Fault::new(Effect::Shifted, when).on(On::Reading)).collect();
    Faults { rules, ..Faults::default() }
}

#[tokio::test]
async fn a_list_is_read_to_its_end() {
    for (metrics, requests) in [(0, 1), (1, 1), (99, 1), (100, 2), (101, 2), (250, 3)] {
        let (lago, api) = lago(metrics).await;
        assert_eq!(api.billable_metrics().await.unwrap().len(), metrics);
        assert_eq!(lago.counts().requests, requests, "{metrics}");
    }
}

#[tokio::test]
async fn a_list_that_shifts_while_it_is_read_is_read_again() {
    let (lago, api) = lago(250).await;
    lago.set_faults(shifted(&[2]));

    assert_eq!(api.billable_metrics().await.unwrap().len(), 250);
    assert_eq!(lago.counts().requests, 6);

    // Another page each time: nobody knows what is missing.
    lago.set_faults(shifted(&[1, 5, 9]));
    let error = api.billable_metrics().await.err();
    assert!(matches!(error, Some(ApiError::Unsteady)), "{error:?}");
}

/// Lago may remember a count for half an hour.
#[tokio::test]
async fn a_count_that_never_fits_is_not_believed_for_ever() {
    let (lago, api) = lago(250).await;
    lago.set_faults(shifted(&[3, 6]));

    assert_eq!(api.billable_metrics().await.unwrap().len(), 200);
    assert_eq!(lago.counts().requests, 6);
}

/// Lago says with the first page how many there are.
#[tokio::test]
async fn a_list_that_is_too_long_is_not_begun() {
    let (lago, api) = lago(3).await;
    let page = serde_json::json!({
        "billable_metrics": [], "meta": { "current_page": 1, "next_page": 2, "total_count": 100_001 },
    });
    lago.answer_instead(http::Method::GET, "/api/v1/billable_metrics", 200, page);

    let error = api.billable_metrics().await.err();
    assert!(matches!(error, Some(ApiError::TooMany)), "{error:?}");
    assert_eq!(lago.counts().requests, 1);
}
