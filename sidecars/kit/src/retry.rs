//! When to try again: a schedule with jitter, and what the other side asks for.

use std::time::Duration;

use crate::clock::Timestamp;

/// Delays before each further attempt; after the last one it is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    delays: Vec<Duration>,
}

/// Share by which a delay is varied either way, so that what failed together does not return together.
const JITTER: f64 = 0.2;

impl Schedule {
    /// A schedule of these delays; an empty one means a single attempt.
    pub fn new(delays: Vec<Duration>) -> Self {
        Self { delays }
    }

    /// The delay after `attempts` attempts (1 after the first), varied by ±20 % through `random`
    /// (0 to 1). `None`: the schedule is used up.
    pub fn delay_for(&self, attempts: u32, random: f64) -> Option<Duration> {
        let nth = usize::try_from(attempts).ok()?.checked_sub(1)?;
        let factor = 1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0);
        self.delays.get(nth).map(|delay| delay.mul_f64(factor))
    }

    /// The longest delay with jitter: a stored time further away comes from a clock that jumped.
    pub fn longest(&self) -> Duration {
        self.delays.iter().max().copied().unwrap_or_default().mul_f64(1.0 + JITTER)
    }
}

/// Reads `Retry-After`: seconds, or a date against `now`. Capped at `cap`; what is neither, or lies
/// in the past, asks for nothing.
///
/// Source: RFC 9110 sections 5.6.7 and 10.2.3.
pub fn parse_retry_after(value: &[u8], now: Timestamp, cap: Duration) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are a very long time.
        return Some(text.parse().map_or(cap, Duration::from_secs).min(cap));
    }
    let at = parse_http_date(text)?;
    let wait = Timestamp::from_millis(at.as_millisecond()).since(now);
    (!wait.is_zero()).then(|| wait.min(cap))
}

/// A date in any of the three forms that a recipient must read.
fn parse_http_date(text: &str) -> Option<jiff::Timestamp> {
    let preferred = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    preferred.or_else(|| {
        let obsolete = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"].into_iter();
        let local = obsolete.filter_map(|form| jiff::civil::DateTime::strptime(form, text).ok()).next()?;
        local.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn delays_follow_the_schedule_within_the_jitter_and_end() {
        let schedule = Schedule::new(vec![Duration::from_secs(5), Duration::from_secs(30)]);
        assert_eq!(schedule.delay_for(1, 0.0), Some(Duration::from_secs(4)));
        assert_eq!(schedule.delay_for(1, 1.0), Some(Duration::from_secs(6)));
        assert_eq!(schedule.delay_for(2, 0.5), Some(Duration::from_secs(30)));
        assert_eq!(schedule.delay_for(3, 0.5), None);
        assert_eq!(schedule.delay_for(0, 0.5), None);
        assert_eq!(schedule.longest(), Duration::from_secs(36));
    }

    #[test]
    fn retry_after_is_read_and_bounded() {
        let now: Timestamp = "2026-11-21T04:00:00Z".parse().unwrap();
        let cap = Duration::from_secs(3600);
        let check = |value: &str, expected: Option<u64>| {
            let parsed = parse_retry_after(value.as_bytes(), now, cap);
            assert_eq!(parsed, expected.map(Duration::from_secs), "{value}");
        };
        check("0", Some(0));
        check("120", Some(120));
        check(" 7 ", Some(7));
        check("99999999999999999999999999", Some(3600));
        check("Sat, 21 Nov 2026 04:01:30 GMT", Some(90));
        check("Sun, 21 Nov 2032 04:01:30 GMT", Some(3600));
        check("Fri, 20 Nov 2026 04:00:00 GMT", None);
        check("Saturday, 21-Nov-26 04:01:30 GMT", Some(90));
        check("Sat Nov 21 04:01:30 2026", Some(90));
        check("Sun Nov  1 04:01:30 2026", None);
        check("Sunday, 06-Nov-94 08:49:37 GMT", None);
        for garbage in
            ["", "-5", "1.5", "soon", "0x10", "\u{7f}", "Sat, 99 Nov 2026 04:01:30 GMT", "Sat Nov 21 04:01:30"]
        {
            check(garbage, None);
        }
        assert_eq!(parse_retry_after(b"\xff\xff", now, cap), None);
    }
}
