//! Rows of the event table.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::event::EventPk;

/// Somebody who does things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub pk: i64,
    /// Its name.
    pub username: String,
    /// Its address.
    pub email: String,
}

impl User {
    /// A user.
    pub fn new(pk: i64, username: &str) -> Self {
        Self { pk, username: username.to_owned(), email: format!("{username}@example.com") }
    }

    /// As an event shows it.
    fn shown(&self) -> Value {
        json!({ "pk": self.pk, "email": self.email, "username": self.username })
    }
}

/// An event that is to happen.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub(super) pk: Option<EventPk>,
    pub(super) action: Arc<str>,
    pub(super) app: Arc<str>,
    pub(super) user: Arc<Value>,
    pub(super) context: Arc<Value>,
    pub(super) client_ip: Option<Arc<str>>,
    pub(super) brand: Arc<Value>,
    /// Microseconds since the epoch.
    pub(super) created: Option<i64>,
}

impl NewEvent {
    /// An event of the system: no user, no address.
    pub fn of_system(action: &str, context: Value) -> Self {
        Self {
            pk: None,
            action: action.into(),
            app: "authentik.events.signals".into(),
            user: Arc::new(json!({})),
            context: Arc::new(context),
            client_ip: None,
            brand: Arc::new(json!({
                "app": "authentik_brands",
                "model_name": "brand",
                "pk": "7b5c0a3f6d1e4f8e9a2b1c0d3e4f5a6b",
                "name": "Default brand",
            })),
            created: None,
        }
    }

    /// An event that a user causes.
    pub fn of(user: &User, action: &str, context: Value) -> Self {
        let event = Self::of_system(action, context);
        Self { user: Arc::new(user.shown()), client_ip: Some("203.0.113.7".into()), ..event }
    }

    /// Somebody logs in with a password.
    pub fn login(user: &User) -> Self {
        Self::of(user, "login", json!({ "auth_method": "password", "auth_method_args": { "known_device": false } }))
    }

    /// An object is made, changed or deleted by way of HTTP: `action` is the part behind `model_`.
    pub fn model(user: &User, action: &str, app: &str, model_name: &str, pk: &str, name: &str) -> Self {
        let model = json!({ "pk": pk, "app": app, "name": name, "model_name": model_name });
        let event = Self::of(user, &format!("model_{action}"), json!({ "model": model }));
        Self { app: "authentik.events.middleware".into(), ..event }
    }

    /// With this key.
    #[must_use]
    pub fn with_pk(self, pk: EventPk) -> Self {
        Self { pk: Some(pk), ..self }
    }

    /// At this time, in microseconds since the epoch.
    #[must_use]
    pub fn at_micros(self, created: i64) -> Self {
        Self { created: Some(created), ..self }
    }

    /// By this part of Authentik.
    #[must_use]
    pub fn by_app(self, app: &str) -> Self {
        Self { app: app.into(), ..self }
    }
}

/// A row. What many have in common they share.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) pk: EventPk,
    pub(super) created: i64,
    pub(super) new: NewEvent,
}

impl Row {
    /// As the API shows it.
    pub(super) fn shown(&self) -> Value {
        let expires = self.created.saturating_add(365 * 86_400_000_000);
        json!({
            "pk": self.pk.dashed(),
            "user": *self.new.user,
            "action": &*self.new.action,
            "app": &*self.new.app,
            "context": *self.new.context,
            "client_ip": self.new.client_ip.as_deref(),
            "created": moment(self.created),
            "expires": moment(expires),
            "brand": *self.new.brand,
        })
    }

    pub(super) fn user_pk(&self) -> Option<i64> {
        self.new.user["pk"].as_i64()
    }
}

/// A time as Python's `isoformat` writes it, with `Z`: six digits of a second, or none.
pub(super) fn moment(micros: i64) -> String {
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(time) if micros % 1_000_000 == 0 => format!("{time:.0}"),
        Ok(time) => format!("{time:.6}"),
        Err(_) => String::new(),
    }
}
