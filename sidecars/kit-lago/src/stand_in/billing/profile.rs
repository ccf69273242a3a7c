//! Which Lago is stood in for: the versions and event stores that answer differently.

/// A version and event store of Lago, as far as its usage API differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// v1.16.0 on Postgres: one INSERT an event, lenient timestamps, torn batches.
    #[default]
    V1_16,
    /// v1.39.0 on Postgres: bulk INSERT that is rolled back as a whole, timestamps are judged.
    V1_39,
    /// The head of 2026-08-21 with ClickHouse as event store: no duplicate is ever refused.
    ClickHouse,
}

/// How a `timestamp` becomes a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimestampRule {
    /// Ruby's `to_f`: whatever begins like a number, else 0.
    Lenient,
    /// Ruby's `Float()`: a number or nothing, through a binary fraction.
    Strict,
    /// Ruby's `BigDecimal()`: a number or nothing, exactly.
    Exact,
}

impl Profile {
    /// All of them, for tests that ask each.
    pub const ALL: [Self; 3] = [Self::V1_16, Self::V1_39, Self::ClickHouse];

    /// What `GET /health` calls it.
    pub fn version(self) -> &'static str {
        match self {
            Self::V1_16 => "v1.16.0",
            Self::V1_39 => "v1.39.0",
            Self::ClickHouse => "v1.51.0",
        }
    }

    /// Requests answered at the same time where nothing is configured: Puma's threads.
    ///
    /// Source: getlago/lago-api `config/puma.rb` at v1.16.0 and at the head of 2026-08-21.
    pub fn threads(self) -> usize {
        match self {
            Self::V1_16 | Self::V1_39 => 5,
            Self::ClickHouse => 3,
        }
    }

    /// Source: getlago/lago-api `app/services/events/create_service.rb` at v1.16.0, v1.39.0 and the
    /// head of 2026-08-21.
    pub(super) fn timestamp_rule(self) -> TimestampRule {
        match self {
            Self::V1_16 => TimestampRule::Lenient,
            Self::V1_39 => TimestampRule::Strict,
            Self::ClickHouse => TimestampRule::Exact,
        }
    }

    pub(super) fn is_clickhouse(self) -> bool {
        self == Self::ClickHouse
    }

    /// Whether the routes of events and subscriptions take a dot as part of an id. Before, what
    /// follows the dot was taken for a format.
    ///
    /// Source: getlago/lago-api `config/routes.rb` at v1.16.0 and at the head of 2026-08-21; events
    /// from v1.42.0 on.
    pub(super) fn routes_dots(self) -> bool {
        self == Self::ClickHouse
    }

    /// Whether a subscription tells its current billing period.
    pub(super) fn tells_billing_period(self) -> bool {
        self != Self::V1_16
    }

    /// Whether there are features and entitlements: from v1.32.0 on, for everybody some months later.
    pub(super) fn has_features(self) -> bool {
        self != Self::V1_16
    }

    /// Whether a webhook endpoint has a name and takes only some types of events: from v1.44.0 on.
    pub(super) fn filters_webhooks(self) -> bool {
        self == Self::ClickHouse
    }

    /// Webhook endpoints of an organisation; more from v1.21.0 on.
    pub(super) fn most_endpoints(self) -> usize {
        if self == Self::V1_16 { 5 } else { 10 }
    }

    /// Whether a plan may be billed every half year.
    pub(super) fn has_semiannual(self) -> bool {
        self == Self::ClickHouse
    }
}
