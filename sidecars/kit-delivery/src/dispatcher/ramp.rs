//! How many requests may be in flight at a time: not all that are allowed at once to a sink that has just come back.

/// The requests that may be in flight, from one on: one more whenever as many have got through as are allowed by then. So
/// whoever has just come up answers the first ones slowly and meets the others later, however many events wait.
#[derive(Debug)]
pub(super) struct Ramp {
    most: usize,
    allowed: usize,
    got_through: usize,
}

impl Ramp {
    /// Up to `most`. Where it `ramps` it begins with one, as after every outage.
    pub(super) fn new(most: usize, ramps: bool) -> Self {
        Self { most, allowed: if ramps { 1 } else { most }, got_through: 0 }
    }

    /// So many may be in flight now.
    pub(super) fn allowed(&self) -> usize {
        self.allowed
    }

    /// A request has got through.
    pub(super) fn got_through(&mut self) {
        if self.allowed >= self.most {
            return;
        }
        self.got_through += 1;
        if self.got_through >= self.allowed {
            (self.allowed, self.got_through) = (self.allowed + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_goes_with_every_round_that_got_through() {
        let mut ramp = Ramp::new(4, true);
        let allowed: Vec<usize> = (0..8)
            .map(|_| {
                let allowed = ramp.allowed();
                ramp.got_through();
                allowed
            })
            .collect();
        assert_eq!(allowed, [1, 2, 2, 3, 3, 3, 4, 4]);
    }

    #[test]
    fn without_a_ramp_and_with_a_single_request_all_are_allowed_at_once() {
        assert_eq!(Ramp::new(5, false).allowed(), 5);
        let mut single = Ramp::new(1, true);
        single.got_through();
        assert_eq!(single.allowed(), 1);
    }
}
