"""Reports usage with the client that Lago publishes, and prints what each call came to, a line of JSON each.

    lago_client.py URL KEY

The client is used as its documentation says; only the URL is the caller's.
"""

import json
import sys

from lago_python_client import Client
from lago_python_client.exceptions import LagoApiError
from lago_python_client.models import BatchEvent, Event


def event(transaction_id, code="gb", timestamp=1_732_000_000, gb="1.50", amount=None):
    return Event(
        transaction_id=transaction_id,
        external_subscription_id="acme-pro",
        code=code,
        timestamp=timestamp,
        precise_total_amount_cents=amount,
        properties={"gb": gb, "region": "r-1"},
    )


def tell(name, call):
    try:
        answer = call()
        told = {"answer": None if answer is None else answer.dict()}
    except LagoApiError as error:
        told = {"status": error.status_code, "detail": error.detail, "response": error.response}
    print(json.dumps({"call": name, **told}), flush=True)


def main(url, key):
    events = Client(api_key=key, api_url=url).events
    tell("create", lambda: events.create(event("single")))
    tell("create with decimals", lambda: events.create(event("decimals", timestamp="1732000000.250", amount="12.5")))
    tell("batch_create", lambda: events.batch_create(BatchEvent(events=[event(f"batch-{n}", gb=n) for n in range(100)])))
    tell("find", lambda: events.find("single"))
    tell("create without a code", lambda: events.create(event("wrong", code="")))
    wrong = [event("good"), event("wrong", code="")]
    tell("batch_create with a wrong one", lambda: events.batch_create(BatchEvent(events=wrong)))
    tell("create another under the same id", lambda: events.create(event("single", gb="2")))
    tell("find an unknown one", lambda: events.find("unknown"))
    others = Client(api_key="wrong", api_url=url).events
    tell("create with a wrong key", lambda: others.create(event("stolen")))
    tell("find with a wrong key", lambda: others.find("single"))
    tell("create the same again", lambda: events.create(event("single")))


if __name__ == "__main__":
    main(*sys.argv[1:])
