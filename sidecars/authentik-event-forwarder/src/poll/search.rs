//! Where to begin reading: the page that reaches back to what was read before.

use kit::clock::Timestamp;

use super::page::Page;
use super::window::Window;
use super::{LookError, Poller, Session};

/// Each doubles the way back: what has no end after so many has none.
const DOUBLINGS: u32 = 50;

impl Poller {
    /// The newest page of those that reach back to `floor`: further and further back until one does, and then between.
    pub(super) async fn oldest_page(
        &mut self,
        session: &mut Session,
        floor: Timestamp,
        count: usize,
    ) -> Result<Page, LookError> {
        let mut too_new = 1;
        let mut number = 2;
        let mut found = None;
        for _ in 0..DOUBLINGS {
            let last = count.div_ceil(session.most).max(too_new + 1);
            let page = self.page(session, Window { page: number.min(last), size: session.most }, Some(floor)).await?;
            if page.reaches(floor) {
                found = Some(page);
                break;
            }
            too_new = page.window.page;
            number = too_new * 2;
        }
        let mut found = found.ok_or(LookError::Unsteady)?;
        while found.window.page > too_new + 1 {
            let between = too_new + (found.window.page - too_new) / 2;
            let page = self.page(session, Window { page: between, size: session.most }, Some(floor)).await?;
            if page.reaches(floor) {
                found = page;
            } else {
                too_new = page.window.page;
            }
        }
        Ok(found)
    }
}
