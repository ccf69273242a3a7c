//! One comparison under way: what it has found, and what Lago has not answered.
//!
//! A question that Lago does not answer is about its subscription, and keeps no other one from being compared. A few in a
//! row are about Lago: then it is left alone, and the next comparison begins after the subscription at which this one ended,
//! so that a few that never get an answer do not keep the others from theirs for ever.

use kit_lago::api::ApiError;

use super::Drift;

/// After so many questions in a row without an answer Lago is left alone: each may take half a minute.
const IN_A_ROW: u32 = 3;

/// What a comparison has come to.
#[derive(Default)]
pub(super) struct Round {
    pub(super) drifted: Vec<Drift>,
    pub(super) unanswered: Unanswered,
}

/// Questions that Lago has not answered.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    in_a_row: u32,
    count: u64,
    last: Option<String>,
    gave_up: bool,
}

impl Unanswered {
    /// Notes how a question went.
    pub(super) fn note<T>(&mut self, answer: Result<T, ApiError>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.in_a_row = 0;
                Some(answer)
            }
            Err(error) => {
                // What is about one subscription is an answer all the same; a key that is refused once always is.
                self.in_a_row += match error {
                    ApiError::NotAllowed | ApiError::NotFound | ApiError::TooLarge(_) => 0,
                    ApiError::Denied(_) => IN_A_ROW,
                    _ => 1,
                };
                self.count += 1;
                let error = kit::error::chain(&error);
                tracing::debug!(error = %error, "Lago does not say what it has counted of a subscription: {error}");
                self.last = Some(error);
                None
            }
        }
    }

    /// Whether Lago is to be left alone.
    pub(super) fn gives_up(&mut self) -> bool {
        self.gave_up |= self.in_a_row >= IN_A_ROW;
        self.in_a_row >= IN_A_ROW
    }

    /// The next questions are others.
    pub(super) fn begin_anew(&mut self) {
        self.in_a_row = 0;
    }

    /// Everything was asked for.
    pub(super) fn is_whole(&self) -> bool {
        !self.gave_up
    }

    /// What is to be said about it.
    pub(super) fn sentence(&self) -> Option<String> {
        let (last, count) = (self.last.as_ref()?, self.count);
        let questions = if count == 1 { "question" } else { "questions" };
        let rest = if self.gave_up { ", and was left alone" } else { "" };
        Some(format!("Lago has not answered {count} {questions}{rest}: {last}"))
    }
}

/// The subscription at which a comparison gave up.
#[derive(Debug, Default)]
pub(crate) struct GaveUpAt(Option<String>);

impl GaveUpAt {
    /// Puts what is sorted by subscription into the order in which it is asked for.
    pub(super) fn order<T>(&mut self, all: &mut [T], subscription: impl Fn(&T) -> &str) {
        if let Some(last) = self.0.take() {
            let begin = all.partition_point(|one| subscription(one) <= last.as_str());
            all.rotate_left(begin);
        }
    }

    pub(super) fn note(&mut self, subscription: &str) {
        self.0 = Some(subscription.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(unanswered: &mut Unanswered, error: ApiError) -> bool {
        assert!(unanswered.note::<()>(Err(error)).is_none());
        unanswered.gives_up()
    }

    #[test]
    fn a_few_in_a_row_are_about_lago_and_single_ones_about_their_subscription() {
        let mut unanswered = Unanswered::default();
        for _ in 0..5 {
            assert!(!fails(&mut unanswered, ApiError::Status(504)));
            assert!(!fails(&mut unanswered, ApiError::TooSlow));
            assert!(!fails(&mut unanswered, ApiError::NotAllowed));
            unanswered.note(Ok(()));
        }
        assert!(unanswered.is_whole());
        assert_eq!(
            unanswered.sentence().as_deref(),
            Some("Lago has not answered 15 questions: Lago does not allow the question (405)")
        );
        assert!(!fails(&mut unanswered, ApiError::Status(504)));
        assert!(!fails(&mut unanswered, ApiError::Status(500)));
        assert!(fails(&mut unanswered, ApiError::Status(504)));
        assert!(!unanswered.is_whole());

        let mut refused = Unanswered::default();
        assert!(fails(&mut refused, ApiError::Denied(401)), "it would be refused again");
    }

    #[test]
    fn the_next_comparison_begins_after_the_subscription_at_which_one_gave_up() {
        let mut gave_up_at = GaveUpAt::default();
        for (last, expected) in [("b", ["c", "a", "b"]), ("a", ["b", "c", "a"]), ("x", ["a", "b", "c"])] {
            let mut all = ["a", "b", "c"];
            gave_up_at.note(last);
            gave_up_at.order(&mut all, |one| one);
            assert_eq!(all, expected);
        }
        let mut all = ["a", "b", "c"];
        gave_up_at.order(&mut all, |one| one);
        assert_eq!(all, ["a", "b", "c"]);
    }
}
