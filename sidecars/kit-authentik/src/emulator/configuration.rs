//! Objects of Authentik that the API shows, and who may look at them.

use hashbrown::{HashMap, HashSet};
use serde_json::{Value, json};

use super::event::User;
use super::generation::Generation;
use crate::blueprint::{self, Authentication, NAME};
use crate::envelope::SERVICE_ACCOUNT;

/// A kind of object, by its place below `/api/v3/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `core/users/`
    User,
    /// `core/groups/`
    Group,
    /// `core/brands/`
    Brand,
    /// `core/tokens/`
    Token,
    /// `propertymappings/notification/`
    Mapping,
    /// `events/transports/`
    Transport,
    /// `events/rules/`
    Rule,
    /// `policies/expression/`
    Policy,
    /// `policies/bindings/`
    Binding,
}

impl Kind {
    pub(super) const ALL: [Self; 9] = [
        Self::User,
        Self::Group,
        Self::Brand,
        Self::Token,
        Self::Mapping,
        Self::Transport,
        Self::Rule,
        Self::Policy,
        Self::Binding,
    ];

    /// Its place below `/api/v3/`.
    pub fn path(self) -> &'static str {
        match self {
            Self::User => "core/users/",
            Self::Group => "core/groups/",
            Self::Brand => "core/brands/",
            Self::Token => "core/tokens/",
            Self::Mapping => "propertymappings/notification/",
            Self::Transport => "events/transports/",
            Self::Rule => "events/rules/",
            Self::Policy => "policies/expression/",
            Self::Binding => "policies/bindings/",
        }
    }

    /// What somebody needs to see it.
    pub(super) fn permission(self) -> &'static str {
        match self {
            Self::User => "authentik_core.view_user",
            Self::Group => "authentik_core.view_group",
            Self::Brand => "authentik_brands.view_brand",
            Self::Token => "authentik_core.view_token",
            Self::Mapping => "authentik_events.view_notificationwebhookmapping",
            Self::Transport => "authentik_events.view_notificationtransport",
            Self::Rule => "authentik_events.view_notificationrule",
            Self::Policy => "authentik_policies_expression.view_expressionpolicy",
            Self::Binding => "authentik_policies.view_policybinding",
        }
    }
}

/// Whose a token is.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) user_pk: i64,
    pub(super) username: String,
    pub(super) is_superuser: bool,
    pub(super) permissions: HashSet<String>,
}

const ADMIN_PK: i64 = 4;
const SERVICE_PK: i64 = 7;
const ADMIN_TOKEN: &str = "akadmin-token-0123456789abcdef0123456789";
const SERVICE_TOKEN: &str = "outrigger-token-0123456789abcdef01234567";

/// The objects.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    objects: HashMap<Kind, Vec<Value>>,
    accounts: HashMap<String, Account>,
    service_token: String,
    admin_token: String,
}

impl Configuration {
    /// What our blueprint makes of a fresh installation.
    pub fn of_blueprint(generation: Generation) -> Self {
        let mut made =
            Self { service_token: SERVICE_TOKEN.to_owned(), admin_token: ADMIN_TOKEN.to_owned(), ..Self::default() };
        let account = |user_pk, username: &str, is_superuser, permissions: &[&str]| Account {
            user_pk,
            username: username.to_owned(),
            is_superuser,
            permissions: permissions.iter().map(|name| (*name).to_owned()).collect(),
        };
        made.accounts.insert(ADMIN_TOKEN.to_owned(), account(ADMIN_PK, "akadmin", true, &[]));
        made.accounts
            .insert(SERVICE_TOKEN.to_owned(), account(SERVICE_PK, SERVICE_ACCOUNT, false, &blueprint::PERMISSIONS));
        made.add_user(&User::new(ADMIN_PK, "akadmin"), &[], json!({}));
        made.add_user(&User::new(SERVICE_PK, SERVICE_ACCOUNT), &[], json!({}));
        made.push(
            Kind::Group,
            json!({ "pk": id(1), "name": NAME, "users": [SERVICE_PK], "is_superuser": false, "attributes": {} }),
        );
        made.push(Kind::Brand, json!({ "brand_uuid": id(2), "domain": "authentik-default", "default": true, "branding_title": "authentik", "attributes": {} }));
        made.push(Kind::Token, json!({ "pk": id(3), "identifier": NAME, "intent": "api", "user": SERVICE_PK, "expiring": false, "expires": null, "description": "Outrigger polls events with it" }));
        let body = blueprint::body(Authentication::Hmac);
        made.push(Kind::Mapping, json!({ "pk": id(4), "name": blueprint::BODY_MAPPING, "expression": body }));
        let headers = blueprint::headers(Authentication::Hmac).unwrap_or_default();
        made.push(Kind::Mapping, json!({ "pk": id(5), "name": blueprint::HEADERS_MAPPING, "expression": headers }));
        let mut transport = json!({
            "pk": id(6), "name": NAME, "mode": "webhook", "mode_verbose": "Webhook (generic)",
            "webhook_url": blueprint::URL, "send_once": true,
        });
        transport[generation.body_mapping_field()] = json!(id(4));
        if generation.has_header_mapping() {
            transport["webhook_mapping_headers"] = json!(id(5));
        }
        made.push(Kind::Transport, transport);
        made.push(Kind::Policy, json!({ "pk": id(7), "name": NAME, "execution_logging": false, "expression": blueprint::policy(), "bound_to": 1 }));
        let mut rule = json!({ "pk": id(8), "name": NAME, "severity": "notice", "transports": [id(6)] });
        rule[generation.target_field()] = json!(id(1));
        made.push(Kind::Rule, rule);
        made.push(Kind::Binding, json!({
            "pk": id(9), "target": id(8), "policy": id(7), "group": null, "user": null, "enabled": true, "negate": false,
            "order": 0, "timeout": 30, "failure_result": false,
        }));
        made
    }

    /// What the migrations between two versions do. A field is removed and another one added where a reader would expect
    /// it to be renamed.
    ///
    /// Source: goauthentik/authentik `authentik/events/migrations/`
    /// `0009_remove_notificationtransport_webhook_mapping_and_more.py` (2025.4) and
    /// `0010_rename_group_notificationrule_destination_group_and_more.py` (2025.8).
    pub(super) fn migrate(&mut self, before: Generation, after: Generation) {
        let crosses = |at: Generation| before < at && at <= after;
        if crosses(Generation::V2025_4) {
            for transport in self.objects_mut(Kind::Transport).iter_mut().filter_map(Value::as_object_mut) {
                transport.remove("webhook_mapping");
                transport.insert("webhook_mapping_body".to_owned(), Value::Null);
                transport.insert("webhook_mapping_headers".to_owned(), Value::Null);
            }
        }
        if crosses(Generation::V2025_8) {
            for rule in self.objects_mut(Kind::Rule).iter_mut().filter_map(Value::as_object_mut) {
                let group = rule.remove("group").unwrap_or_default();
                rule.insert("destination_group".to_owned(), group);
            }
        }
    }

    /// Everything of the blueprint as it says, and everything else as it is.
    pub(super) fn apply_blueprint(&mut self, generation: Generation) {
        let mut made = Self::of_blueprint(generation);
        // Where it sends to is a variable of the worker.
        let url = self.objects(Kind::Transport).first().map(|transport| transport["webhook_url"].clone());
        if let (Some(url), Some(transport)) = (url, made.objects_mut(Kind::Transport).first_mut()) {
            transport["webhook_url"] = url;
        }
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::User) {
            for object in std::mem::take(made.objects_mut(kind)) {
                let objects = self.objects_mut(kind);
                let key = if kind == Kind::Brand { "brand_uuid" } else { "pk" };
                match objects.iter_mut().find(|known| known[key] == object[key]) {
                    Some(known) => *known = object,
                    None => objects.push(object),
                }
            }
        }
    }

    pub(super) fn service_token(&self) -> &str {
        &self.service_token
    }

    pub(super) fn admin_token(&self) -> &str {
        &self.admin_token
    }

    pub(super) fn account(&self, token: &str) -> Option<&Account> {
        self.accounts.get(token)
    }

    /// Another token for the service account; the one that it had is not known any more.
    pub fn rotate_service_token(&mut self, token: &str) {
        if let Some(account) = self.accounts.remove(&self.service_token) {
            self.accounts.insert(token.to_owned(), account);
        }
        token.clone_into(&mut self.service_token);
    }

    /// What the service account may do.
    pub fn set_permissions(&mut self, permissions: &[&str]) {
        if let Some(account) = self.accounts.get_mut(&self.service_token) {
            account.permissions = permissions.iter().map(|name| (*name).to_owned()).collect();
        }
    }

    /// Makes the service account one that may do everything, or no longer.
    pub fn set_superuser(&mut self, is_superuser: bool) {
        if let Some(account) = self.accounts.get_mut(&self.service_token) {
            account.is_superuser = is_superuser;
        }
    }

    /// All objects of a kind.
    pub fn objects(&self, kind: Kind) -> &[Value] {
        self.objects.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// All objects of a kind, to be changed.
    pub fn objects_mut(&mut self, kind: Kind) -> &mut Vec<Value> {
        self.objects.entry(kind).or_default()
    }

    fn push(&mut self, kind: Kind, object: Value) {
        self.objects_mut(kind).push(object);
    }

    /// A user that the API knows.
    pub fn add_user(&mut self, user: &User, groups: &[&str], attributes: Value) {
        let mut keys = Vec::new();
        for name in groups {
            let known = self.objects(Kind::Group).iter().position(|group| group["name"] == *name);
            let at = known.unwrap_or_else(|| {
                let number = 1000 + self.objects(Kind::Group).len() as u128;
                let group =
                    json!({ "pk": id(number), "name": name, "users": [], "is_superuser": false, "attributes": {} });
                self.push(Kind::Group, group);
                self.objects(Kind::Group).len() - 1
            });
            let group = &mut self.objects_mut(Kind::Group)[at];
            if let Some(users) = group["users"].as_array_mut() {
                users.push(json!(user.pk));
            }
            keys.push(json!({ "pk": group["pk"], "name": name, "attributes": group["attributes"] }));
        }
        let service = user.username == SERVICE_ACCOUNT;
        self.push(Kind::User, json!({
            "pk": user.pk, "username": user.username, "name": user.username, "email": user.email, "is_active": true,
            "groups": keys.iter().map(|group| group["pk"].clone()).collect::<Vec<_>>(), "groups_obj": keys,
            "attributes": attributes, "uuid": id(10_000 + user.pk.unsigned_abs() as u128), "uid": format!("{:064x}", user.pk),
            "path": if service { SERVICE_ACCOUNT } else { "users" },
            "type": if service { "service_account" } else { "internal" }, "is_superuser": user.pk == ADMIN_PK,
        }));
    }
}

/// A UUID that is the same in every run.
fn id(number: u128) -> String {
    uuid::Uuid::from_u128(0x0b7e_5c1a_0000_4000_8000_0000_0000_0000 | number).to_string()
}
