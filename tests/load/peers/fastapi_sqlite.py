"""What an operator would write today: verify, insert, commit, answer.

Run by `tests/load/run`: uvicorn fastapi_sqlite:app. Settings come from KEY and DATABASE.
"""

import base64
import hashlib
import hmac
import os
import sqlite3

from fastapi import FastAPI, Request, Response

KEY = os.environ["KEY"].encode()
database = sqlite3.connect(os.environ["DATABASE"], isolation_level=None, check_same_thread=False)
database.execute("PRAGMA journal_mode = WAL")
# As durable as the journal: a sync before every answer.
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE IF NOT EXISTS webhooks (key TEXT PRIMARY KEY, body BLOB NOT NULL)")

app = FastAPI()


@app.post("/webhooks/lago")
async def receive(request: Request) -> Response:
    body = await request.body()
    expected = base64.b64encode(hmac.new(KEY, body, hashlib.sha256).digest()).decode()
    if not hmac.compare_digest(expected, request.headers.get("x-lago-signature", "")):
        return Response(status_code=401)
    database.execute(
        "INSERT OR IGNORE INTO webhooks (key, body) VALUES (?, ?)",
        (request.headers["x-lago-unique-key"], body),
    )
    return Response(status_code=200)
