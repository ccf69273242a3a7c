"""mq-bridge between the same sender and the same broker: HTTP in, a queue out, answered when the broker has confirmed.

Run by the section `amqp-peer`: mq_bridge_http.py HOST:PORT AMQP_URL QUEUE [KEY]. With a key the signature is verified first, as
the webhook processor does it, in a handler as mq-bridge's users write them.
"""

import base64
import hashlib
import hmac
import sys

from mq_bridge import NonRetryableError, Route

address, broker, queue = sys.argv[1:4]
config = {
    "input": {"http": {"url": address, "path": "/webhooks/lago", "internal_buffer_size": 1024}},
    "output": {"amqp": {"url": broker, "queue": queue, "no_declare_queue": True}},
    "batch_size": 256,
}
route = Route.from_config(config)

if len(sys.argv) > 4:
    key = sys.argv[4].encode()

    def verify(message):
        expected = base64.b64encode(hmac.new(key, bytes(message.payload), hashlib.sha256).digest()).decode()
        if not hmac.compare_digest(expected, message.metadata.get("x-lago-signature", "")):
            raise NonRetryableError("the signature does not match")
        return message

    route = route.with_handler(verify)

route.run()
