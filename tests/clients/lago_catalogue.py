"""Reads an organisation's catalogue with the client that Lago publishes, and prints it as one JSON object.

    lago_catalogue.py URL KEY

Each list is what the client made of Lago's answers; "webhook_endpoints" is an error's name where the client wants what older
versions do not answer.
"""

import json
import sys

from lago_python_client import Client


def main(url, key):
    client = Client(api_key=key, api_url=url)
    found = {}
    for name in ["taxes", "billable_metrics", "plans", "add_ons", "coupons", "webhook_endpoints"]:
        try:
            answer = getattr(client, name).find_all({"per_page": 100})
            found[name] = [json.loads(entry.json()) for entry in answer[name]]
        except Exception as error:  # whatever the client raises is what is told
            found[name] = type(error).__name__
    found["plan"] = json.loads(client.plans.find("growth").json())
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
