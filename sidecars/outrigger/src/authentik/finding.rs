//! Everything that `outrigger authentik doctor` can find.

use crate::finding::findings;

/// How the blueprint is applied again. Changing a variable does not do it: only a changed file does by itself.
pub(super) const APPLY: &str = "docker-compose exec authentik-worker ak apply_blueprint outrigger/outrigger.yaml";

findings! {
    AWAY = Fail "authentik" "authentik-away": "Authentik's API does not answer, or is starting"
        => "docker-compose ps authentik-server; is --url (AUTHENTIK_URL) what this machine reaches?";
    OTHER = Fail "authentik" "authentik-other": "what answers there is not Authentik's API"
        => "set --url (AUTHENTIK_URL) to Authentik itself, without a path: http://authentik-server:9000";
    UNSAFE = Warn "authentik" "authentik-unsafe": "2024.10.0 to 2024.10.2 have CVE-2024-52287 and CVE-2024-52289"
        => "AUTHENTIK_VERSION=2024.10.5 in .env, then compose/up";
    TOO_NEW = Warn "authentik" "authentik-too-new": "from 2026.11 on transports take no webhook_url; the blueprint is for 2024.10 to 2026.8"
        => "stay on 2026.8 until a blueprint for it is released; what is there goes on";

    TOKEN_REFUSED = Fail "token" "token-refused": "Authentik does not know the event forwarder's token"
        => "apply the blueprint again, with the token of now: docker-compose up -d authentik-worker, then docker-compose exec authentik-worker ak apply_blueprint outrigger/outrigger.yaml";
    TOKEN_LACKS = Fail "token" "token-lacks-permission": "the service account may not see what the event forwarder reads"
        => APPLY;
    TOKEN_SUPERUSER = Warn "token" "token-superuser": "the event forwarder's token is that of somebody who may do everything"
        => "use the token of the service account that the blueprint makes (secrets/outrigger-authentik-token)";
    READER_REFUSED = Fail "reader" "reader-refused": "the token for looking at the configuration is refused, or may not see all of it"
        => "give --reader-token-file with an API token (intent API Token) of an administrator";

    ACCOUNT_MISSING = Fail "account" "account-missing": "the service account is not there"
        => APPLY;
    ACCOUNT_INACTIVE = Fail "account" "account-inactive": "the service account is switched off: its token is refused"
        => "in Authentik, Directory, Users, outrigger: activate";
    TOKEN_MISSING = Fail "account" "token-missing": "the service account's token is not there"
        => APPLY;
    TOKEN_EXPIRES = Fail "account" "token-expires": "the token expires, and Authentik then puts another one in its place"
        => APPLY;
    TOKEN_INTENT = Fail "account" "token-intent": "the token is not for the API, but an app password or the like"
        => APPLY;
    TOKEN_OWNER = Fail "account" "token-owner": "the token belongs to somebody else"
        => APPLY;
    GROUP_MISSING = Fail "group" "group-missing": "the group that the rule notifies is not there"
        => APPLY;
    GROUP_EMPTY = Fail "group" "group-empty": "nobody is in the group: nobody is notified, and nothing is sent"
        => APPLY;

    BODY_MISSING = Fail "mapping" "body-mapping-missing": "the mapping that makes the body is not there"
        => APPLY;
    BODY_DIFFERS = Warn "mapping" "body-mapping-differs": "the mapping that makes the body is not the one of this version of outrigger"
        => "compare with outrigger authentik blueprint, mount that, and apply it";
    HEADERS_MISSING = Fail "mapping" "headers-mapping-missing": "the mapping that makes the header is not there"
        => APPLY;
    HEADERS_DIFFER = Warn "mapping" "headers-mapping-differs": "the mapping that makes the header does not belong to the one that makes the body"
        => "compare with outrigger authentik blueprint, mount that, and apply it";

    TRANSPORT_MISSING = Fail "transport" "transport-missing": "the transport is not there"
        => APPLY;
    TRANSPORT_MODE = Fail "transport" "transport-mode": "the transport is not a generic webhook"
        => APPLY;
    TRANSPORT_URL = Fail "transport" "transport-url": "the transport sends to another address; with a slash at its end a redirect would lose the body"
        => "set OUTRIGGER_WEBHOOK_URL of worker and server (or --webhook-url, if that is wrong) and apply the blueprint";
    TRANSPORT_BODY = Fail "transport" "transport-body": "the transport does not use the mapping of the body: Authentik's own body is sent, which names no event"
        => APPLY;
    TRANSPORT_HEADERS = Fail "transport" "transport-headers": "the transport does not use the mapping of the header: nothing is signed there"
        => APPLY;
    TRANSPORT_FANS_OUT = Warn "transport" "transport-fans-out": "a notification is sent once for each user of the group"
        => APPLY;

    POLICY_MISSING = Fail "policy" "policy-missing": "the policy that chooses events is not there"
        => APPLY;
    POLICY_DIFFERS = Warn "policy" "policy-differs": "the policy is not the one of this version of outrigger; one that lets everything through may loop"
        => "compare with outrigger authentik blueprint, mount that, and apply it";
    RULE_MISSING = Fail "rule" "rule-missing": "the rule is not there"
        => APPLY;
    RULE_DISABLED = Fail "rule" "rule-disabled": "the rule is switched off"
        => "in Authentik, Customization, Notification Rules: enable it";
    RULE_TARGET = Fail "rule" "rule-target": "the rule notifies nobody, or another group: after an upgrade across 2025.8 the field has another name"
        => APPLY;
    RULE_TRANSPORT = Fail "rule" "rule-transport": "the rule does not use the transport"
        => APPLY;
    BINDING_MISSING = Fail "rule" "binding-missing": "the policy is not bound to the rule, and a rule without a policy never fires"
        => APPLY;
    BINDING_OFF = Fail "rule" "binding-off": "the policy's binding to the rule is switched off, or turned round"
        => APPLY;
    BINDING_OTHER = Warn "rule" "binding-other": "something else is bound to the rule too, and one that lets an event through is enough"
        => "in Authentik, Customization, Notification Rules, outrigger-event-forwarder: remove the other bindings, and make a rule of your own for them";

    TEST_REFUSED = Fail "notification" "test-refused": "the event forwarder does not believe the test notification: the secrets differ"
        => "the first line of secrets/authentik-webhook-secret must be one of AUTHENTIK_WEBHOOK_SECRET_FILE; docker-compose up -d authentik-server authentik-worker authentik-event-forwarder";
    TEST_UNPROVEN = Fail "notification" "test-unproven": "the test notification carries no proof of the kind that the event forwarder asks for"
        => "is the secret in the server, which sends the test, and in the worker (/run/secrets/authentik-webhook-secret)? Does SIDECAR_AUTHENTIK__AUTHENTICATION fit the version: hmac-header from 2025.4 on, hmac-body before?";
    TEST_UNAVAILABLE = Fail "notification" "test-unavailable": "the event forwarder cannot take anything now: its journal does not, or it is stopping"
        => "outrigger doctor with --admin of the event forwarder; docs/runbooks/readyz-journal.md";
    TEST_UNMAPPED = Fail "notification" "test-unmapped": "the test notification arrives with Authentik's own body, which names no event"
        => APPLY;
    TEST_UNREADABLE = Fail "notification" "test-unreadable": "the test notification arrives and is proven, and its body is of another version of the mapping"
        => "compare with outrigger authentik blueprint, mount that, and apply it";
    TEST_FAILED = Fail "notification" "test-failed": "Authentik cannot deliver a test notification"
        => "docker-compose ps authentik-event-forwarder; is it in a network with authentik-server and authentik-worker?";
    TEST_LOST = Fail "notification" "test-lost": "Authentik takes the test notification for delivered, and the event forwarder has not seen it"
        => "something else answers at the transport's URL, or a proxy redirects: curl -i -X POST URL from a container of the network";
}
