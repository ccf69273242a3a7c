//! A log-linear histogram: fixed memory, every value within 1 % of the truth.

use std::time::Duration;

use super::Latency;

/// Values below this are counted exactly; above, each doubling has half as many steps.
const EXACT: u64 = 128;
const STEPS: usize = EXACT as usize / 2;
/// Up to 2^42 µs, about 50 days; longer times count as that.
const DOUBLINGS: usize = 36;

/// Counts durations by size, with a resolution of 1 µs or 1 % of the value.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum_micros: u128,
    max_micros: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; EXACT as usize + DOUBLINGS * STEPS], count: 0, sum_micros: 0, max_micros: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let last = self.buckets.len() - 1;
        self.buckets[bucket_of(micros).min(last)] += 1;
        self.count += 1;
        self.sum_micros += u128::from(micros);
        self.max_micros = self.max_micros.max(micros);
    }

    /// Adds all counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum_micros += other.sum_micros;
        self.max_micros = self.max_micros.max(other.max_micros);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The duration that this share (0.0 to 1.0) of all did not exceed; zero when there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (share.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_micros(highest_in(bucket).min(self.max_micros));
            }
        }
        Duration::ZERO
    }

    /// The usual percentiles in milliseconds.
    pub fn summary_ms(&self) -> Latency {
        let ms = |share| self.quantile(share).as_secs_f64() * 1e3;
        Latency {
            mean: self.sum_micros as f64 / self.count.max(1) as f64 / 1e3,
            p50: ms(0.5),
            p90: ms(0.9),
            p99: ms(0.99),
            p999: ms(0.999),
            max: self.max_micros as f64 / 1e3,
        }
    }
}

/// 0…127 have a bucket each; [128, 256) has 64 buckets of 2, [256, 512) has 64 of 4, and so on.
fn bucket_of(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let doubling = (value.ilog2() - EXACT.ilog2()) as usize;
    let step = (value >> (doubling + 1)) as usize - STEPS;
    EXACT as usize + doubling * STEPS + step
}

fn highest_in(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(EXACT as usize) else {
        return bucket as u64;
    };
    let (doubling, step) = (above / STEPS, above % STEPS);
    (((STEPS + step + 1) as u64) << (doubling + 1)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_a_bucket_that_is_near_it() {
        let mut value = 0_u64;
        while value < 1 << 42 {
            for probe in [value, value + 1] {
                let top = highest_in(bucket_of(probe));
                assert!(top >= probe, "{probe} is above its bucket {top}");
                assert!(top as f64 <= probe as f64 * 1.016 + 1.0, "{probe} in {top}");
            }
            value = value * 17 / 16 + 1;
        }
    }

    #[test]
    fn buckets_are_contiguous() {
        for bucket in 0..EXACT as usize + DOUBLINGS * STEPS - 1 {
            assert_eq!(bucket_of(highest_in(bucket) + 1), bucket + 1);
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution() {
        let mut histogram = Histogram::default();
        let mut other = Histogram::default();
        for millis in 1..=1000 {
            let half = if millis % 2 == 0 { &mut histogram } else { &mut other };
            half.record(Duration::from_millis(millis));
        }

        histogram.merge(&other);

        let summary = histogram.summary_ms();
        let near = |value: f64, wanted: f64| (value - wanted).abs() <= wanted * 0.016;
        assert!(near(summary.p50, 500.0), "{summary:?}");
        assert!(near(summary.p99, 990.0), "{summary:?}");
        assert!(near(summary.p999, 999.0), "{summary:?}");
        assert!(near(summary.mean, 500.5), "{summary:?}");
        assert_eq!(summary.max, 1000.0);
    }

    #[test]
    fn an_empty_histogram_and_an_endless_wait_are_no_trouble() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);

        histogram.record(Duration::MAX);

        assert_eq!(histogram.count(), 1);
        assert!(histogram.quantile(1.0) > Duration::from_secs(3_000_000));
    }
}
