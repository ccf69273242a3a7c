//! Errors as one line.

/// An error with all its causes: `what failed: because of this: because of that`.
///
/// JSON logs show an error's own message only; this keeps the reasons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Libraries that already include their cause would say it twice.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("read key file")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_cause_is_named_once() {
        let error = Outer(std::io::Error::other("disk is gone"));
        assert_eq!(chain(&error), "read key file: disk is gone");
    }
}
