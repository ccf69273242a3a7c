//! What Lago has complained about: it has the event, says so whenever that is sent again, and does not complain twice.
//! So the reason is kept for as long as the event is tried or parked.

use std::collections::HashMap;

use kit_journal::engine::{Action, Reader};
use kit_journal::{DeliveryState, JournalError, Seq};

use crate::sender::SINK;

/// Values in the journal that hold a reason each begin so; the position follows.
const PREFIX: &str = "complaint/";

/// Reasons by position. As many as events are parked for that, or tried.
#[derive(Debug, Default)]
pub(crate) struct Complaints(HashMap<Seq, String>);

impl Complaints {
    /// Those of events that are tried or parked, as the journal remembers them, and the names of those that are settled.
    pub(crate) fn load(reader: &mut dyn Reader) -> Result<(Self, Vec<String>), JournalError> {
        let (mut open, mut settled) = (HashMap::new(), Vec::new());
        for (name, value) in reader.values(PREFIX)? {
            let seq = name.strip_prefix(PREFIX).and_then(|seq| seq.parse::<Seq>().ok());
            let found = seq.map(|seq| reader.found(seq)).transpose();
            let is_open = match found {
                Ok(found) => found.flatten().is_some_and(|found| {
                    let state = found.deliveries.get(SINK).map(|delivery| delivery.state);
                    matches!(state, Some(DeliveryState::Retrying | DeliveryState::Pending | DeliveryState::Parked))
                }),
                Err(JournalError::Damaged { .. }) => false,
                Err(error) => return Err(error),
            };
            match seq.filter(|_| is_open) {
                Some(seq) => drop(open.insert(seq, String::from_utf8_lossy(&value).into_owned())),
                None => settled.push(name),
            }
        }
        Ok((Self(open), settled))
    }

    /// Notes one; gives what the journal is to remember of it.
    pub(crate) fn note(&mut self, seq: Seq, reason: &str) -> Action {
        self.0.insert(seq, reason.to_owned());
        Action::Remember { name: format!("{PREFIX}{seq}"), value: reason.as_bytes().to_vec() }
    }

    /// The reason, however often the event is sent again.
    pub(crate) fn of(&self, seq: Seq) -> Option<&str> {
        self.0.get(&seq).map(String::as_str)
    }
}

/// Why an event is parked that Lago has taken. Its first word is no other reason's: to send it again is no use.
pub(crate) fn sentence(reason: &str) -> String {
    format!("complaint: Lago took it and cannot use it: {reason}")
}
