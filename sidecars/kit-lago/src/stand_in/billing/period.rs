//! The present billing period of a subscription. All plans of the stand-in are monthly, and all
//! customers live in UTC.
//!
//! Source: getlago/lago-api `app/services/subscriptions/dates/monthly_service.rb` at v1.16.0.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::catalogue::{BillingTime, Subscription};

/// First and last microsecond of the period that holds `now_micros`. It does not begin before the
/// subscription did.
pub(super) fn current(subscription: &Subscription, now_micros: i64) -> (i64, i64) {
    let (start, end) = month_around(subscription, now_micros);
    let start = subscription.current_billing_period_started_at.map_or(start, Timestamp::as_microsecond);
    let end = subscription.current_billing_period_ending_at.map_or(end, Timestamp::as_microsecond);
    let began = subscription.started_at.map_or(i64::MIN, Timestamp::as_microsecond);
    (start.max(began), end)
}

fn month_around(subscription: &Subscription, now_micros: i64) -> (i64, i64) {
    let now = Timestamp::from_microsecond(now_micros).unwrap_or(Timestamp::MAX);
    let today = now.to_zoned(TimeZone::UTC).date();
    let anchor = match subscription.billing_time {
        BillingTime::Calendar => today.first_of_month(),
        BillingTime::Anniversary => subscription.subscription_at.to_zoned(TimeZone::UTC).date(),
    };
    // Months are counted from the anchor, since one that began on the 31st has its 31st again.
    let nth = |months: i32| anchor.checked_add(months.months()).unwrap_or(anchor);
    let mut months = (i32::from(today.year()) - i32::from(anchor.year())) * 12
        + (i32::from(today.month()) - i32::from(anchor.month()));
    if nth(months) > today {
        months -= 1;
    }
    (micros(nth(months)), micros(nth(months + 1)) - 1)
}

fn micros(day: Date) -> i64 {
    let midnight: DateTime = day.into();
    // Fails beyond year 9999 only, and a clock that far off decides nothing here.
    TimeZone::UTC.to_timestamp(midnight).map_or(i64::MAX, Timestamp::as_microsecond)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::timestamp::iso_millis;
    use super::*;

    fn check(billing_time: BillingTime, since: &str, now: &str, expected: (&str, &str)) {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let subscription =
            Subscription { billing_time, ..Subscription::active("sub", "customer", "plan", time(since)) };
        let (start, end) = current(&subscription, time(now).as_microsecond());
        assert_eq!((iso_millis(start).as_str(), iso_millis(end).as_str()), expected);
    }

    #[test]
    fn months_are_counted_by_the_calendar_or_from_the_first_day() {
        check(
            BillingTime::Calendar,
            "2025-11-20T08:00:00Z",
            "2026-02-10T00:00:00Z",
            ("2026-02-01T00:00:00.000Z", "2026-02-28T23:59:59.999Z"),
        );
        check(
            BillingTime::Anniversary,
            "2025-10-31T08:00:00Z",
            "2026-02-28T00:00:00Z",
            ("2026-02-28T00:00:00.000Z", "2026-03-30T23:59:59.999Z"),
        );
        check(
            BillingTime::Anniversary,
            "2025-10-31T08:00:00Z",
            "2026-02-27T23:59:59Z",
            ("2026-01-31T00:00:00.000Z", "2026-02-27T23:59:59.999Z"),
        );
    }

    #[test]
    fn the_first_period_begins_with_the_subscription() {
        check(
            BillingTime::Calendar,
            "2026-02-07T08:00:00Z",
            "2026-02-10T00:00:00Z",
            ("2026-02-07T08:00:00.000Z", "2026-02-28T23:59:59.999Z"),
        );
    }
}
