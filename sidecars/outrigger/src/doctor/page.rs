//! The page about all findings, from their table.

use std::fmt::Write as _;

use super::finding::{CHECKS, TABLE};
use crate::finding::State;

/// The page, as Markdown.
pub(crate) fn page() -> String {
    let mut page = String::from(
        "# What `outrigger doctor` looks at and finds\n\n\
         Made by `outrigger doctor --reference`. How it is used, and the shape of `--json`: [runbook](../runbooks/doctor.md).\n\n\
         ## Looked at\n\n\
         What is not configured is shown as not checked, with the variable that would switch it on. Every secret may be given as a\n\
         file (`NAME_FILE`).\n\n\
         | Check | Switched on by | Looks at |\n|---|---|---|\n",
    );
    for (check, variables, what) in CHECKS {
        let _ = writeln!(page, "| `{check}` | {variables} | {what} |");
    }
    page.push_str(
        "\n## Found\n\n`fail`: something does not work. `warn`: something will not, or more could be kept. Both end with exit code 1.\n\n\
         | Finding | Check | | Means | Fix |\n|---|---|---|---|---|\n",
    );
    for known in TABLE {
        let state = if known.state == State::Fail { "fail" } else { "warn" };
        let fix = known.fix.replace('|', "\\|");
        let _ = writeln!(page, "| `{}` | `{}` | {state} | {} | {fix} |", known.id, known.check, known.what);
    }
    page
}
