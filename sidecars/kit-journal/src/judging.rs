//! Whether an event is new: the same judgement for every engine, over what the engine says is known.

use std::collections::HashMap;

use crate::engine::{Append, Verdict};
use crate::error::JournalError;
use crate::event::{Dedupe, EventId, KeyHash, Seq};

/// Events that are known under a key, in order of position.
pub(crate) type Known = Vec<(EventId, Seq)>;

/// The verdict about an event that is known already; `None` for a new one, which says in its head from now on where its
/// key is known with another body.
pub(crate) fn judge(append: &mut Append, known: &[(EventId, Seq)]) -> Option<Verdict> {
    let id = append.head.id;
    let same = match append.dedupe {
        Dedupe::Key => known.first(),
        Dedupe::KeyAndBody => known.iter().find(|(known, _)| *known == id),
    };
    if let Some(&(id, seq)) = same {
        return Some(Verdict { id, seq, duplicate: true, conflict: false, withheld: false });
    }
    if !known.is_empty() {
        append.head.conflict = true;
        append.json = append.head.to_json();
    }
    None
}

/// The verdict about an event that is not stored because of another one.
pub(crate) fn withheld(append: &Append) -> Verdict {
    Verdict { id: append.head.id, seq: 0, duplicate: false, conflict: false, withheld: true }
}

/// Verdicts for all of a group, where one of it has a key that is known with other content, in the journal or within the
/// group; `None` where the group can be stored. `look_up` is asked with the key and the nth of the group.
pub(crate) fn contradiction(
    group: &[Append],
    mut look_up: impl FnMut(KeyHash, usize) -> Result<Known, JournalError>,
) -> Result<Option<Vec<Verdict>>, JournalError> {
    let mut own: HashMap<KeyHash, Vec<EventId>> = HashMap::new();
    let mut contradicts = false;
    let mut verdicts = Vec::with_capacity(group.len());
    for (nth, append) in group.iter().enumerate() {
        let id = append.head.id;
        let mut verdict = withheld(append);
        if append.dedupe == Dedupe::Key {
            let key = append.key;
            let known = look_up(key, nth)?;
            let earlier = own.entry(key).or_default();
            let known = known.iter().map(|(known, seq)| (*known, *seq));
            let mut all = known.chain(earlier.iter().map(|known| (*known, 0)));
            if let Some((known, seq)) = all.next() {
                contradicts |= known != id;
                verdict = Verdict { id: known, seq, duplicate: true, conflict: false, withheld: seq == 0 };
            }
            earlier.push(id);
        }
        verdicts.push(verdict);
    }
    Ok(contradicts.then_some(verdicts))
}
