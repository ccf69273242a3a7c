//! How far Authentik's events have been read, as the journal remembers it: recorded in the commit that stores what was read.

use kit::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// How far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Every event up to here that could be seen has been taken.
    pub(super) watermark: Timestamp,
    /// Nothing before this is ever taken: it happened before the first look.
    pub(super) origin: Timestamp,
}

impl Position {
    /// Name of the value in the journal.
    pub(super) fn name(authentik: &str) -> String {
        format!("authentik.poll.{authentik}")
    }

    /// From there on.
    pub(super) fn since(time: Timestamp) -> Self {
        Self { watermark: time, origin: time }
    }

    /// After everything that there is now.
    pub(super) fn after(newest: Option<Timestamp>) -> Self {
        // Where there is nothing yet, everything is to come.
        newest.map_or(Self::since(Timestamp::default()), |newest| Self {
            watermark: newest,
            origin: newest.plus_millis(1),
        })
    }

    /// What the journal holds.
    pub(super) fn read(stored: &[u8]) -> Option<Self> {
        serde_json::from_slice(stored).ok()
    }

    pub(super) fn to_stored(self) -> Vec<u8> {
        serde_json::to_vec(&self).unwrap_or_default()
    }

    /// Further on, up to `newest`. A time that has not come there yet – another server's clock is ahead – would have events
    /// of the time between passed by.
    pub(super) fn advanced(self, newest: Timestamp, server_time: Option<Timestamp>) -> Self {
        // The header has seconds: what happened within this one is not ahead.
        let latest = server_time.map_or(newest, |now| newest.min(now.plus_millis(999)));
        Self { watermark: self.watermark.max(latest), ..self }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn it_survives_its_text_and_nothing_else_does() {
        let position = Position { watermark: at(1_700_000_000), origin: at(1_600_000_000) };
        assert_eq!(Position::read(&position.to_stored()).unwrap(), position);
        assert!(Position::read(b"").is_none() && Position::read(b"{}").is_none());
    }

    #[test]
    fn it_goes_on_only_and_never_into_the_future() {
        let position = Position::since(at(100));
        assert_eq!(position.advanced(at(90), Some(at(200))).watermark, at(100));
        assert_eq!(position.advanced(at(150), Some(at(200))).watermark, at(150));
        assert_eq!(position.advanced(at(3_700), Some(at(200))).watermark, at(200).plus_millis(999));
        assert_eq!(position.advanced(at(3_700), None).watermark, at(3_700));
        assert_eq!(position.advanced(at(150), None).origin, at(100));
    }

    #[test]
    fn now_is_after_the_newest_event() {
        assert_eq!(Position::after(Some(at(5))).origin, at(5).plus_millis(1));
        assert_eq!(Position::after(None), Position::since(at(0)));
    }
}
