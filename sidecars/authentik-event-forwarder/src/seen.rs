//! Events that are in the journal for certain, as many as are worth remembering: what the overlap of two looks brings
//! again need not be offered to it again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use hashbrown::HashSet;
use kit_authentik::event::EventPk;

/// About what a busy hour has; 1 MiB when full.
const CAPACITY: usize = 16_384;

/// Shared by both ways in. Nothing is lost when something is forgotten: the journal knows it too.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    known: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Seen {
    /// Remembers an event that the journal has.
    pub(crate) fn add(&self, pk: EventPk) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !memory.known.insert(pk.as_u128()) {
            return;
        }
        memory.order.push_back(pk.as_u128());
        if memory.order.len() > CAPACITY
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.known.remove(&oldest);
        }
    }

    pub(crate) fn contains(&self, pk: EventPk) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.contains(&pk.as_u128())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let seen = Seen::default();
        for n in 0..=CAPACITY as u128 {
            seen.add(EventPk::from_u128(n));
            seen.add(EventPk::from_u128(n));
        }
        assert!(!seen.contains(EventPk::from_u128(0)));
        assert!(seen.contains(EventPk::from_u128(1)) && seen.contains(EventPk::from_u128(CAPACITY as u128)));
    }
}
