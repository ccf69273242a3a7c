"""Workflows with every end that there is, run by the published Python SDK.

python worker.py HOST:PORT NAMESPACE TASK_QUEUE: prints "ready" and works until it is ended.
"""

import asyncio
import sys
from datetime import timedelta

from temporalio import workflow
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker


@workflow.defn(name="Complete")
class Complete:
    @workflow.run
    async def run(self, given=None):
        return {"given": given}


@workflow.defn(name="Fail")
class Fail:
    @workflow.run
    async def run(self, given=None):
        raise ApplicationError("the card was declined", {"code": 51}, type="CardDeclined", non_retryable=True)


@workflow.defn(name="FailUntil")
class FailUntil:
    """Fails until the attempt that it is given; the retry policy is the starter's."""

    @workflow.run
    async def run(self, attempt):
        now = workflow.info().attempt
        if now < attempt:
            raise ApplicationError(f"attempt {now} fails")
        return {"attempt": now}


@workflow.defn(name="Continue")
class Continue:
    @workflow.run
    async def run(self, times):
        if times > 0:
            workflow.continue_as_new(times - 1)
        return "the end"


@workflow.defn(name="Wait")
class Wait:
    """Waits for the signal `finish`, and returns what came with it."""

    def __init__(self):
        self.answers = []

    @workflow.signal(name="finish")
    def finish(self, answer=None):
        self.answers.append(answer)

    @workflow.run
    async def run(self, given=None):
        await workflow.wait_condition(lambda: bool(self.answers))
        return self.answers[0]


@workflow.defn(name="Dunning")
class Dunning:
    """After a failed payment: waits for one that succeeds, or until patience is over.

    Every signal carries the webhook's key, so that what arrives twice counts once.
    """

    def __init__(self):
        self.failures = set()
        self.paid = False

    @workflow.signal(name="payment_failed")
    def payment_failed(self, event=None):
        self.failures.add((event or {}).get("id"))

    @workflow.signal(name="payment_succeeded")
    def payment_succeeded(self, event=None):
        self.paid = True

    @workflow.run
    async def run(self, given=None):
        patience = (given or {}).get("patience_seconds", 30) if isinstance(given, dict) else 30
        try:
            await workflow.wait_condition(lambda: self.paid, timeout=timedelta(seconds=patience))
        except asyncio.TimeoutError:
            return {"outcome": "suspended", "failures": len(self.failures)}
        return {"outcome": "paid", "failures": len(self.failures)}


async def main():
    address, namespace, queue = sys.argv[1:4]
    while True:
        try:
            client = await Client.connect(address, namespace=namespace)
            break
        except RuntimeError:
            await asyncio.sleep(0.2)
    workflows = [Complete, Fail, FailUntil, Continue, Wait, Dunning]
    async with Worker(
        client, task_queue=queue, workflows=workflows, workflow_runner=UnsandboxedWorkflowRunner(), max_cached_workflows=200
    ):
        print("ready", flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
