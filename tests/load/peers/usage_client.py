"""A producer that uses Lago's own client for Python, one call after the other, for a while.

Run by the section `usage-client`: usage_client.py URL KEY METRIC EVENTS_A_CALL SECONDS. Prints one JSON object.
"""

import json
import sys
import time
import uuid

from lago_python_client.client import Client
from lago_python_client.models import BatchEvent, Event

url, key, metric = sys.argv[1:4]
events, seconds = int(sys.argv[4]), float(sys.argv[5])
client = Client(api_key=key, api_url=url)
word, calls, times = uuid.uuid4().hex, 0, []


def event(place: int) -> Event:
    return Event(
        transaction_id=f"{word}-{calls:09}-{place:02}",
        external_subscription_id=f"s-{(calls + place) % 256:03}",
        code=metric,
        timestamp=1732000000,
        precise_total_amount_cents=None,
        properties={metric: 100 + place, "region": "eu-central-1", "tier": "standard"},
    )


begin = time.perf_counter()
while time.perf_counter() - begin < seconds:
    started = time.perf_counter()
    if events == 1:
        client.events.create(event(0))
    else:
        client.events.batch_create(BatchEvent(events=[event(place) for place in range(events)]))
    times.append(time.perf_counter() - started)
    calls += 1
took = time.perf_counter() - begin
times.sort()
print(
    json.dumps(
        {
            "calls": calls,
            "events": calls * events,
            "events_per_second": round(calls * events / took, 1),
            "p50_ms": round(times[len(times) // 2] * 1000, 3),
            "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 3),
        }
    )
)
