//! What went wrong with the broker, by what it means for the messages.

use lapin::ErrorKind;

/// Reply codes of AMQP 0-9-1 that are told apart (specification, section 1.2).
const CONTENT_TOO_LARGE: u16 = 311;
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

/// Why something could not be done at the broker. Texts hold the broker's own words, and never a body or a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmqpError {
    /// The connection is gone, or nothing came in time: what was on its way has an unknown outcome.
    #[error("{0}")]
    Lost(String),
    /// The user may not do this, may not log in, or the virtual host is not there.
    #[error("the broker refuses us: {0}")]
    Refused(String),
    /// An exchange or a queue is missing.
    #[error("{0}")]
    Missing(String),
    /// As many channels are open as the connection may have. Nothing was sent, and what is under way goes on.
    #[error("{0}")]
    Crowded(String),
    /// What was asked for contradicts what is there, or one message is not acceptable.
    #[error("{0}")]
    Precondition(String),
}

impl AmqpError {
    /// What an error of lapin means.
    pub(crate) fn from_lapin(error: &lapin::Error) -> Self {
        let amqp = match error.kind() {
            ErrorKind::ProtocolError(amqp) => amqp,
            ErrorKind::ChannelsLimitReached => return Self::Crowded(error.to_string()),
            _ => return Self::Lost(error.to_string()),
        };
        let text = amqp.get_message().to_string();
        match amqp.get_id() {
            ACCESS_REFUSED | NOT_ALLOWED => Self::Refused(text),
            NOT_FOUND => Self::Missing(text),
            PRECONDITION_FAILED | CONTENT_TOO_LARGE => Self::Precondition(text),
            _ => Self::Lost(text),
        }
    }
}

impl AmqpError {
    /// The broker ended the connection because something came on a channel that it had closed: lapin sends what it has
    /// queued after it has agreed to that (4.12.3; "CHANNEL_ERROR - expected 'channel.open'"). Why the channel was closed
    /// is not heard then.
    pub(crate) fn is_of_a_closed_channel(&self) -> bool {
        matches!(self, Self::Lost(text) if text.starts_with("CHANNEL_ERROR"))
    }
}

impl From<lapin::Error> for AmqpError {
    fn from(error: lapin::Error) -> Self {
        Self::from_lapin(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_our_own_is_no_lost_connection() {
        let error = AmqpError::from_lapin(&ErrorKind::ChannelsLimitReached.into());
        assert!(matches!(error, AmqpError::Crowded(_)), "{error:?}");
    }
}
