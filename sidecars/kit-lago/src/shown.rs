//! Addresses for people: what somebody registered in Lago may hold a password or a token.

use url::Url;

/// An address without what may be a secret in it: user, password, query and fragment.
pub fn shown_url(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return "an address that is none".to_owned() };
    let had_query = parsed.query().is_some();
    parsed.set_query(None);
    parsed.set_fragment(None);
    // They fail for addresses that have neither.
    let _ = parsed.set_username("");
    let _ = parsed.set_password(None);
    if had_query { format!("{parsed}?…") } else { parsed.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_what_may_be_secret() {
        assert_eq!(shown_url("http://u:p@h:1/a?token=t#f"), "http://h:1/a?…");
        assert_eq!(shown_url("http://h/a"), "http://h/a");
    }
}
