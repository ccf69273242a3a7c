//! `Retry-After`, the input as it stands.
//!
//! Promises: nobody makes us wait longer than the cap, digits are seconds, and a date means the time
//! until then.

use std::time::Duration;

use kit::clock::Timestamp;
use kit::retry::{Schedule, parse_retry_after};

/// 2026-11-21T04:00:00Z
const NOW: Timestamp = Timestamp::from_millis(1_795_233_600_000);
const CAP: Duration = Duration::from_secs(3_600);

/// Reads the header.
///
/// # Panics
/// It means something else than it says.
pub fn target(data: &[u8]) {
    let wait = parse_retry_after(data, NOW, CAP);
    assert!(wait.is_none_or(|wait| wait <= CAP));
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(seconds) = text.trim().parse::<u64>()
        && !text.trim().starts_with('+')
    {
        assert_eq!(wait, Some(Duration::from_secs(seconds).min(CAP)));
    }
    // Later it is not longer.
    let later = parse_retry_after(data, NOW.plus_millis(60_000), CAP);
    assert!(later.unwrap_or_default() <= wait.unwrap_or_default());
    numbers(data);
}

/// The schedule's own arithmetic, with any attempt, chance and delays.
fn numbers(data: &[u8]) {
    let delays =
        data.chunks(2).map(|pair| Duration::from_secs(pair.iter().fold(1, |n, byte| n * 256 + u64::from(*byte))));
    let schedule = Schedule::new(delays.collect());
    let random = data.first().map_or(0.5, |byte| f64::from(*byte) / 255.0);
    for attempts in [0, 1, data.len() / 2, data.len(), usize::MAX] {
        let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
        let delay = schedule.delay_for(attempts, random);
        assert_eq!(delay.is_some(), (1..=data.len().div_ceil(2)).contains(&(attempts as usize)));
        assert!(delay.is_none_or(|delay| delay <= schedule.longest()));
    }
}
