"""Authentik's part, as far as a blueprint and a webhook meet it; written from the contract, and run by CPython.

    authentik_side.py check BLUEPRINT VERSION   what Authentik of that version would not take, a line each
    authentik_side.py names BLUEPRINT           the entries, as JSON
    authentik_side.py run BLUEPRINT             requests on standard input, a line of JSON each; answers on standard output

A request is {"event": …, "url": … or "capture": true, "env": …, "version": …, "mapping": …, "tamper": …}, {"policy": event} or
{"claim": user}. Sources: goauthentik/authentik
`authentik/blueprints/v1/common.py`, `authentik/lib/expression/evaluator.py`, `authentik/events/{models,utils}.py` at
2024.10.1 and 2026.2.2.
"""

import json
import os
import re
import socket
import sys
import threading
from datetime import datetime, timezone
from textwrap import indent
from types import SimpleNamespace
from uuid import UUID, uuid4

import requests
import yaml

# --- blueprints -------------------------------------------------------------------------------------

# Since which version a tag is read. A file with another one is refused whole.
TAGS = {
    "!KeyOf": (2024, 10),
    "!Find": (2024, 10),
    "!Env": (2024, 10),
    "!Context": (2024, 10),
    "!Format": (2024, 10),
    "!If": (2024, 10),
    "!Condition": (2024, 10),
    "!Enumerate": (2024, 10),
    "!Index": (2024, 10),
    "!Value": (2024, 10),
    "!AtIndex": (2024, 10),
    "!File": (2025, 8),
    "!FindObject": (2025, 8),
    "!ParseJSON": (2025, 8),
}

LAST = (9999, 0)
EVER = (2024, 10), LAST

# Fields that an entry may have, from when on and up to when (the first version without). Others are ignored without a
# word, which hides mistakes: here they are findings, but where another version has them.
FIELDS = {
    "authentik_core.user": {
        name: EVER for name in ("username", "name", "type", "path", "permissions", "attributes", "email", "is_active")
    },
    "authentik_core.group": {name: EVER for name in ("name", "users", "is_superuser", "attributes", "parent")},
    "authentik_core.token": {
        name: EVER for name in ("identifier", "user", "intent", "expiring", "expires", "description", "key")
    },
    "authentik_events.notificationwebhookmapping": {name: EVER for name in ("name", "expression")},
    "authentik_events.notificationtransport": {
        "name": EVER,
        "mode": EVER,
        "webhook_url": ((2024, 10), (2026, 11)),
        "webhook_mapping": ((2024, 10), (2025, 4)),
        "webhook_mapping_body": ((2025, 4), LAST),
        "webhook_mapping_headers": ((2025, 4), LAST),
        "webhook_ca": ((2026, 5), LAST),
        "send_once": EVER,
    },
    "authentik_policies_expression.expressionpolicy": {
        name: EVER for name in ("name", "expression", "execution_logging")
    },
    "authentik_events.notificationrule": {
        "name": EVER,
        "severity": EVER,
        "transports": EVER,
        "group": ((2024, 10), (2025, 8)),
        "destination_group": ((2025, 8), LAST),
        "destination_event_user": ((2025, 8), LAST),
    },
    "authentik_policies.policybinding": {
        name: EVER for name in ("order", "target", "policy", "group", "user", "enabled", "timeout", "negate", "failure_result")
    },
    "authentik_providers_oauth2.scopemapping": {name: EVER for name in ("name", "scope_name", "description", "expression")},
}

# What each has to be told, by the version.
NEEDED = {
    "authentik_events.notificationtransport": lambda version: (
        ["name", "mode", "webhook_url", "send_once", "webhook_mapping_body" if version >= (2025, 4) else "webhook_mapping"]
        + (["webhook_mapping_headers"] if version >= (2025, 4) else [])
    ),
    "authentik_events.notificationrule": lambda version: [
        "name",
        "transports",
        "destination_group" if version >= (2025, 8) else "group",
    ],
    "authentik_policies.policybinding": lambda version: ["order", "target", "policy"],
    "authentik_core.token": lambda version: ["identifier", "user", "intent", "expiring", "key"],
    "authentik_core.user": lambda version: ["username", "name", "type", "permissions"],
    "authentik_core.group": lambda version: ["name", "users"],
    "authentik_policies_expression.expressionpolicy": lambda version: ["name", "expression"],
    "authentik_events.notificationwebhookmapping": lambda version: ["name", "expression"],
    "authentik_providers_oauth2.scopemapping": lambda version: ["name", "scope_name", "expression"],
}


class Tag:
    def __init__(self, name, value):
        self.name, self.value = name, value


class Loader(yaml.SafeLoader):
    """As Authentik's: a SafeLoader with tags."""


def construct(loader, suffix, node):
    if isinstance(node, yaml.SequenceNode):
        return Tag("!" + suffix, loader.construct_sequence(node, deep=True))
    return Tag("!" + suffix, loader.construct_scalar(node))


Loader.add_multi_constructor("!", construct)


def load(path):
    with open(path, encoding="utf-8") as file:
        return yaml.load(file, Loader)


def tags(value):
    if isinstance(value, Tag):
        yield value
        yield from tags(value.value)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tags(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from tags(entry)


def check(path, version):
    blueprint = load(path)
    findings = []
    if blueprint.get("version") != 1 or not blueprint.get("metadata", {}).get("name"):
        findings.append("version 1 and a name are needed")
    if not path.endswith(".yaml"):
        findings.append("only *.yaml is looked at")
    ids = []
    for entry in blueprint["entries"]:
        model = entry["model"]
        if set(entry) - {"id", "model", "identifiers", "attrs", "state", "conditions"}:
            findings.append(f"{model}: an entry has no {sorted(entry)}")
        fields = FIELDS.get(model)
        if fields is None:
            findings.append(f"{model}: no such model in the table")
            continue
        told = {**entry["identifiers"], **entry.get("attrs", {})}
        for name in told:
            if name not in fields:
                findings.append(f"{model}: {name} is a field of no version")
        for name in NEEDED[model](version):
            since, until = fields[name]
            if name not in told:
                findings.append(f"{model}: {name} is missing")
            elif not since <= version < until:
                findings.append(f"{model}: {name} is not known to this version")
        for tag in tags(told):
            if TAGS.get(tag.name, LAST) > version:
                findings.append(f"{model}: {tag.name} is not known to this version")
            # Later entries have no key yet.
            if tag.name == "!KeyOf" and tag.value not in ids:
                findings.append(f"{model}: !KeyOf {tag.value} is of no earlier entry")
        ids.append(entry.get("id"))
        for name in ("expression",):
            if name in told:
                try:
                    compile(wrapped(told[name], ["notification", "user", "request"]), model, "exec")
                except SyntaxError as error:
                    findings.append(f"{model}: {error}")
    return findings


def expressions(path):
    found = {}
    for entry in load(path)["entries"]:
        attrs = entry.get("attrs", {})
        if "expression" in attrs:
            found[entry["identifiers"]["name"]] = attrs["expression"]
    return found


# --- expressions ------------------------------------------------------------------------------------


class Logger:
    """`ak_logger`; tells standard error, so that a test sees it."""

    def warning(self, event, **fields):
        print(json.dumps({"event": event, **fields}), file=sys.stderr, flush=True)

    info = debug = error = warning


class BrokenLogger:
    def warning(self, event, **fields):
        raise OSError("no space left on device")


def wrapped(expression, names):
    signature = ",".join(names)
    return f"def handler({signature}):\n" + indent(expression, "    ") + f"\nresult = handler({signature})"


def evaluate(expression, logger=Logger, **context):
    source = wrapped(expression, list(context))
    local = dict(context)
    exec(compile(source, "mapping", "exec"), {"ak_logger": logger(), "requests": requests.Session()}, local)
    return local["result"]


# --- what becomes of a value ------------------------------------------------------------------------


def sanitize_item(value):
    if isinstance(value, dict):
        return {key: sanitize_item(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        kept = []
        for item in value:
            item = sanitize_item(item)
            # Falsy ones are dropped.
            if item:
                kept.append(item)
        return kept
    if isinstance(value, UUID):
        return value.hex
    if isinstance(value, datetime):
        # DjangoJSONEncoder: milliseconds.
        text = value.isoformat()
        if value.microsecond:
            text = text[:23] + text[26:]
        return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
    return value


# --- sending ----------------------------------------------------------------------------------------


def stored(value):
    """JSON as PostgreSQL's jsonb gives it back: shorter names first."""
    if isinstance(value, dict):
        return {key: stored(value[key]) for key in sorted(value, key=lambda key: (len(key), key))}
    if isinstance(value, list):
        return [stored(entry) for entry in value]
    return value


def revive(event):
    """The live row: pk a UUID, created a datetime."""
    row = {name: stored(value) for name, value in event.items()}
    row["pk"] = UUID(row["pk"])
    row["created"] = datetime.fromisoformat(row["created"].replace("Z", "+00:00")).astimezone(timezone.utc)
    return SimpleNamespace(**row)


def send(found, request):
    os.environ.clear()
    os.environ.update(request.get("env", {}))
    event = revive(request["event"])
    user = SimpleNamespace(username="outrigger", email="", pk=7)
    notification = SimpleNamespace(
        pk=UUID(request["nonce"]) if "nonce" in request else uuid4(),
        severity="notice",
        body=(event.context or {}).get("message") or f"{event.action}: {event.context}",
        event=event,
        user=user,
    )
    context = {"notification": notification, "user": user, "request": None}
    logger = BrokenLogger if request.get("broken_logger") else Logger
    headers = {}
    version = request.get("version", "2026.2.2")
    if request.get("mapping") == "unmapped":
        body = own_body(notification)
    elif request.get("mapping") == "none":
        body = sanitize_item(evaluate("return None", **context))
    else:
        body = sanitize_item(evaluate(found["outrigger-event-forwarder-body"], logger, **context))
        mapping = found.get("outrigger-event-forwarder-headers")
        # Up to 2025.2 there is no mapping of headers.
        if mapping and tuple(int(part) for part in version.split(".")) >= (2025, 4):
            headers = sanitize_item(evaluate(mapping, logger, **context))
    for path, value in request.get("tamper", {}).items():
        target, names = body, path.split(".")
        if names[0] == "headers":
            target, names = headers, names[1:]
        for name in names[:-1]:
            target = target[name]
        if value is None:
            target.pop(names[-1], None)
        else:
            target[names[-1]] = value
    told = {"body": body, "headers": headers}
    session = requests.Session()
    session.trust_env = False
    session.headers["User-Agent"] = f"authentik@{version}"
    capture = Capture() if request.get("capture") else None
    url = capture.url if capture else request["url"]
    response = session.post(url, json=body, headers=headers, timeout=30)
    told["status"], told["text"], told["redirects"] = response.status_code, response.text, len(response.history)
    if capture:
        told["bytes"] = capture.take()
    return told


def own_body(notification):
    """What is sent where no mapping is set."""
    body = {
        "body": notification.body,
        "severity": notification.severity,
        "user_email": notification.user.email,
        "user_username": notification.user.username,
    }
    if notification.event and notification.event.user:
        body["event_user_email"] = notification.event.user.get("email", None)
        body["event_user_username"] = notification.event.user.get("username", None)
    return body


class Capture:
    """Takes one request down byte for byte."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:{}".format(self.listener.getsockname()[1])
        self.url = f"http://{self.address}/webhooks/authentik"
        self.taken = b""
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        with self.listener, self.listener.accept()[0] as connection:
            while not self.is_whole():
                self.taken += connection.recv(65536)
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    def is_whole(self):
        head, separator, body = self.taken.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: ([0-9]+)", head)
        return separator and len(body) == (int(length.group(1)) if length else 0)

    def take(self):
        self.thread.join()
        return self.taken.decode().replace(self.address, "receiver")


def passes(found, event):
    """Whether the policy lets the event through."""
    row = revive(event)
    request = SimpleNamespace(context={"event": row}, user=None)
    return bool(evaluate(found["outrigger-event-forwarder"], request=request))


def claim(found, user):
    groups = [SimpleNamespace(name=name, attributes=attributes) for name, attributes in user["groups"]]
    user = SimpleNamespace(attributes=user["attributes"], all_groups=lambda: groups)
    request = SimpleNamespace(http_request=None)
    return evaluate(found["outrigger-tenant"], user=user, request=request)


def main():
    verb, path, *rest = sys.argv[1:]
    if verb == "check":
        print("\n".join(check(path, tuple(int(part) for part in rest[0].split(".")))))
        return
    if verb == "names":
        entries = [[entry["model"], entry["identifiers"]] for entry in load(path)["entries"]]
        print(json.dumps(entries, default=lambda tag: [tag.name, tag.value]))
        return
    found = expressions(path)
    for line in sys.stdin:
        request = json.loads(line)
        if "policy" in request:
            told = {"passes": passes(found, request["policy"])}
        elif "claim" in request:
            told = {"claim": claim(found, request["claim"])}
        else:
            told = send(found, request)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
