//! Who may sign: each path with its pinned algorithm and its keys.

use std::collections::BTreeMap;
use std::path::Path;

use kit::config::{Problems, variable};
use kit::secret;
use kit_lago::signature::{Algorithm, HmacKeys, Rejected, RsaKeys};

use crate::config::{LagoSection, OrganizationSection, UNNAMED, well_known};
use crate::keyring::Keyring;

/// One organisation's way to prove that a webhook is its own.
#[derive(Debug)]
pub(crate) struct Organization {
    pub(crate) name: String,
    pub(crate) proof: Proof,
    pub(crate) organization_id: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Proof {
    Hmac(HmacKeys),
    Jwt {
        keys: Keyring,
        issuer: Option<String>,
        /// The keys come from Lago: a failed signature is a reason to ask for a new one.
        fetched: bool,
    },
}

impl Proof {
    pub(crate) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hmac(_) => Algorithm::Hmac,
            Self::Jwt { .. } => Algorithm::Jwt,
        }
    }

    pub(crate) fn verify(&self, header: Option<&[u8]>, body: &[u8]) -> Result<(), Rejected> {
        match self {
            Self::Hmac(keys) => keys.verify(header, body),
            Self::Jwt { keys, issuer, fetched } => {
                let result = keys.current().verify(header, body, issuer.as_deref());
                if *fetched && matches!(result, Err(Rejected::BadSignature)) {
                    keys.doubt();
                }
                result
            }
        }
    }

    /// Whether there is a key to verify with.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Hmac(_) => true,
            Self::Jwt { keys, .. } => !keys.current().is_empty(),
        }
    }
}

/// All organisations, by the last part of their path.
#[derive(Debug)]
pub(crate) struct Organizations {
    by_name: BTreeMap<String, Organization>,
    /// Keys fetched from Lago, where some organisation uses them.
    pub(crate) fetched: Option<Keyring>,
}

impl Organizations {
    /// Reads every key. What is wrong goes to `problems`.
    pub(crate) fn load(section: &LagoSection, problems: &mut Problems) -> Self {
        let mut loader = Loader { section, problems, fetched: None };
        let mut by_name = BTreeMap::new();
        let mut sections: Vec<(String, String, OrganizationSection)> = section
            .organizations
            .iter()
            .map(|(name, section)| (name.clone(), format!("lago.organizations.{name}"), section.clone()))
            .collect();
        if section.has_unnamed() {
            sections.push((UNNAMED.to_owned(), "lago".to_owned(), section.unnamed()));
        }
        for (name, path, section) in sections {
            if let Some(organization) = loader.organization(&name, &path, &section) {
                by_name.insert(name, organization);
            }
        }
        let fetched = loader.fetched;
        Self { by_name, fetched }
    }

    /// The organisation of a path; `None` stands for the path without a name.
    pub(crate) fn get(&self, name: Option<&str>) -> Option<&Organization> {
        match name {
            // The unnamed path's own name is not a path.
            Some(UNNAMED) => None,
            name => self.by_name.get(name.unwrap_or(UNNAMED)),
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Organization> {
        self.by_name.values()
    }

    pub(crate) fn uses_jwt(&self) -> bool {
        self.all().any(|organization| organization.proof.algorithm() == Algorithm::Jwt)
    }
}

struct Loader<'a> {
    section: &'a LagoSection,
    problems: &'a mut Problems,
    fetched: Option<Keyring>,
}

impl Loader<'_> {
    fn organization(&mut self, name: &str, path: &str, section: &OrganizationSection) -> Option<Organization> {
        let proof = match self.algorithm(path, section)? {
            Algorithm::Hmac => self.hmac(path, section)?,
            Algorithm::Jwt => self.jwt(path, section)?,
        };
        Some(Organization { name: name.to_owned(), proof, organization_id: section.organization_id.clone() })
    }

    /// The algorithm that is set, or the only one that what is set can mean.
    fn algorithm(&mut self, path: &str, section: &OrganizationSection) -> Option<Algorithm> {
        if let Some(signature) = section.stated_signature() {
            return Some(signature.into());
        }
        let problem = if section.public_key_file.is_some() {
            "must be set to hmac or jwt: keys for both are configured".to_owned()
        } else if self.section.api_url.is_some() {
            return Some(Algorithm::Jwt);
        } else {
            format!(
                "must be set to hmac or jwt, and {} or {} (or LAGO_API_URL with LAGO_API_KEY_FILE) with it",
                name_of(path, "hmac_key_file"),
                name_of(path, "public_key_file"),
            )
        };
        self.problems.add(&format!("{path}.signature"), &problem);
        None
    }

    fn hmac(&mut self, path: &str, section: &OrganizationSection) -> Option<Proof> {
        let (value, file) = (name_of(path, "hmac_key"), name_of(path, "hmac_key_file"));
        let keys = secret::resolve_lines(&value, section.hmac_key.as_ref(), &file, section.hmac_key_file.as_deref());
        let of_value = section.hmac_key.is_some() && section.hmac_key_file.is_none();
        let set = format!("{path}.{}", if of_value { "hmac_key" } else { "hmac_key_file" });
        let keys = match keys {
            Ok(keys) if keys.is_empty() => {
                self.problems.add(&format!("{path}.hmac_key_file"), "must be set when the signature is hmac");
                return None;
            }
            Ok(keys) => keys,
            Err(error) => {
                self.problems.add(&set, &error.to_string());
                return None;
            }
        };
        match HmacKeys::new(keys) {
            Ok(keys) => Some(Proof::Hmac(keys)),
            Err(error) => {
                self.problems.add(&set, &error.to_string());
                None
            }
        }
    }

    fn jwt(&mut self, path: &str, section: &OrganizationSection) -> Option<Proof> {
        let issuer = section.issuer.clone().or_else(|| self.section.issuer.clone());
        // One file for all is the rule: Lago has one key.
        let own = section.public_key_file.as_deref();
        let shared = self.section.public_key_file.as_deref();
        if let Some(file) = own.or(shared) {
            let path =
                if own.is_some() { format!("{path}.public_key_file") } else { "lago.public_key_file".to_owned() };
            return match read_keys(file) {
                Ok(keys) => Some(Proof::Jwt { keys: Keyring::fixed(keys), issuer, fetched: false }),
                Err(error) => {
                    self.problems.add(&path, &error);
                    None
                }
            };
        }
        if self.section.api_url.is_none() {
            self.problems.add(
                &format!("{path}.public_key_file"),
                "must be set when the signature is jwt, or LAGO_API_URL with LAGO_API_KEY_FILE to fetch the key",
            );
            return None;
        }
        let keys = self.fetched.get_or_insert_with(Keyring::default).clone();
        Some(Proof::Jwt { keys, issuer, fetched: true })
    }
}

fn name_of(path: &str, field: &str) -> String {
    variable(&format!("{path}.{field}"), &well_known())
}

fn read_keys(file: &Path) -> Result<RsaKeys, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    RsaKeys::from_pem(&text).map_err(|error| format!("{}: {error}", file.display()))
}
