//! Which page to ask for. Authentik pages by number, the newest event first, so that a page is a window over rows that
//! move: to the older end when events come, to the newer one when events are deleted.

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Its number, from 1.
    pub(super) page: usize,
    /// Rows of a page.
    pub(super) size: usize,
}

impl Window {
    /// The newest rows.
    pub(super) const fn first(size: usize) -> Self {
        Self { page: 1, size }
    }

    /// Rows before it.
    pub(super) const fn start(self) -> usize {
        (self.page - 1) * self.size
    }

    /// The page that holds the row at `offset` with `margin` older ones, and as many newer ones as pages of at most `most`
    /// rows allow. Pages of different sizes begin at different rows: only so can two of them overlap.
    pub(super) fn around(offset: usize, margin: usize, most: usize) -> Self {
        let end = offset + 1 + margin;
        if end <= most {
            return Self::first(most);
        }
        let of_size = |size: usize| Self { page: end.div_ceil(size), size };
        // The margin is a wish, the row itself is not.
        let best = (most.div_ceil(2)..=most).map(of_size).min_by_key(|window| {
            let is_missed = window.start() > offset;
            (is_missed, window.start(), usize::MAX - window.size)
        });
        match best {
            // No size brings a newer row: with fewer older ones another does.
            Some(window) if window.start() >= offset && margin > 0 => Self::around(offset, margin - 1, most),
            best => best.unwrap_or(Self::first(most)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_that_would_stop_it_is_given_up() {
        assert_eq!(Window::around(720, 1, 10), Window { page: 103, size: 7 });
    }

    #[test]
    fn it_holds_the_row_and_goes_on_to_newer_ones() {
        for (most, margin, at_least) in [(16, 1, 1), (20, 1, 1), (37, 2, 8), (50, 3, 16), (99, 5, 40), (100, 5, 40)] {
            for offset in 0..5_000 {
                let window = Window::around(offset, margin, most);
                let (start, end) = (window.start(), window.start() + window.size);
                assert!(start <= offset && offset < end, "{window:?} misses {offset} of {most}");
                assert!(start == 0 || offset - start >= at_least, "{window:?} hardly goes on from {offset} of {most}");
                assert!(start == 0 || end > offset + margin, "{window:?} {offset}");
                assert!(window.size <= most);
            }
        }
    }
}
