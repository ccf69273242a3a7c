//! Whose tenant a user is: from an attribute, or from the name of a group.

/// A pattern of group names: text, `*` for anything, and `{id}` once for the tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    before: String,
    after: String,
}

impl Pattern {
    /// Reads a pattern such as `tenant_{id}_*`.
    pub(crate) fn new(text: &str) -> Result<Self, &'static str> {
        const WRONG: &str = "must hold {id} once, for example tenant_{id}_*, and * only at its end";
        let (before, after) = text.split_once("{id}").ok_or(WRONG)?;
        let star = after.find('*').unwrap_or(after.len());
        if before.contains('*') || after.contains("{id}") || after.len() > star + 1 || after == "*" {
            return Err(WRONG);
        }
        Ok(Self { before: before.to_owned(), after: after.to_owned() })
    }

    /// The tenant in a group's name: the shortest text that fits.
    pub(crate) fn tenant<'a>(&self, group: &'a str) -> Option<&'a str> {
        let rest = group.strip_prefix(self.before.as_str())?;
        let id = match self.after.strip_suffix('*') {
            Some(after) => &rest[..rest.find(after)?],
            None => rest.strip_suffix(self.after.as_str())?,
        };
        (!id.is_empty()).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_groups_name_says_the_tenant_where_it_fits_the_pattern() {
        let check = |pattern: &str, group: &str, expected: Option<&str>| {
            assert_eq!(Pattern::new(pattern).unwrap().tenant(group), expected, "{pattern} {group}");
        };
        check("tenant_{id}_*", "tenant_42_admins", Some("42"));
        check("tenant_{id}_*", "tenant_42_", Some("42"));
        check("tenant_{id}_*", "tenant_42", None);
        check("tenant_{id}_*", "tenant__admins", None);
        check("tenant_{id}_*", "xtenant_42_admins", None);
        check("tenant_{id}_*", "tenant_a-b_c_d", Some("a-b"));
        check("tenant-{id}", "tenant-0f0e0d0c-0b0a", Some("0f0e0d0c-0b0a"));
        check("{id}", "acme", Some("acme"));
        check("{id}-users", "acme-users", Some("acme"));
        check("{id}-users", "acme-admins", None);
        check("Mandant {id} *", "Mandant Ä Leser", Some("Ä"));
    }

    #[test]
    fn a_pattern_that_could_mean_several_things_is_refused() {
        for wrong in ["", "tenant_*", "{id}{id}", "*{id}", "{id}*", "a_{id}_*_b", "a_{id}_**"] {
            assert!(Pattern::new(wrong).is_err(), "{wrong}");
        }
    }
}
