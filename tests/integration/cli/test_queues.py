"""`ewe queue`: looking at queues, and stopping them, from another process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.cli.worker import good

from event_workflow_engine.queues import Queue, RateLimit

if TYPE_CHECKING:
    from tests.integration.cli.kit import Ewe

    from event_workflow_engine import WorkflowEngine

PAYMENTS = Queue("payments", limit=2, partition_limit=1, rate=RateLimit(100, per=90))


def fill(ewe: Ewe) -> None:
    async def work(engine: WorkflowEngine) -> None:
        engine.register(good)
        engine.queues.register(PAYMENTS, Queue("mail"))
        for name in ("g-1", "g-2"):
            await engine.start(good, name, id=name, queue="payments")

    ewe.engine(work, worker=False)


def drain(ewe: Ewe) -> None:
    async def work(engine: WorkflowEngine) -> None:
        engine.register(good)
        for name in ("g-1", "g-2"):
            await engine.handle(name, good).result(timeout=30)

    ewe.engine(work)


def test_queues_are_listed_with_their_limits_and_what_is_in_them(empty: Ewe) -> None:
    fill(empty)
    mail, payments = empty.json("queue", "ls")["queues"]
    assert payments == {
        "name": "payments", "paused": False, "early": 0, "waiting": 2, "running": 0, "standing": 0,
        "limit": 2, "worker_limit": None, "partition_limit": 1, "rate": {"count": 100, "per_s": 90.0},
    }  # fmt: skip
    assert (mail["name"], mail["waiting"], mail["rate"]) == ("mail", 0, None)
    lines = empty("queue", "ls").out.splitlines()
    assert lines[0].split() == [
        "name", "paused", "early", "waiting", "running", "standing", "limit", "a", "worker", "a", "partition", "rate",
    ]  # fmt: skip
    assert lines[2].split() == ["payments", "no", "0", "2", "0", "0", "2", "-", "1", "100", "in", "90", "s"]


def test_a_paused_queue_begins_nothing_until_it_is_resumed(empty: Ewe) -> None:
    fill(empty)
    assert empty.json("queue", "pause", "payments") == {"name": "payments", "paused": True}
    assert empty("queue", "pause", "payments").out == "queue payments paused\n", "it is so already"

    async def look(engine: WorkflowEngine) -> None:
        engine.register(good)
        beside = await engine.start(good, "x", id="beside")
        await beside.result()

    empty.engine(look)
    payments = empty.json("queue", "ls")["queues"][1]
    assert (payments["paused"], payments["waiting"]) == (True, 2)
    assert empty.json("queue", "resume", "payments") == {"name": "payments", "resumed": True}
    drain(empty)
    payments = empty.json("queue", "ls")["queues"][1]
    assert (payments["paused"], payments["waiting"], payments["running"]) == (False, 0, 0)


def test_a_queue_that_is_not_there_is_refused(empty: Ewe) -> None:
    fill(empty)
    ended = empty("queue", "resume", "mall")
    assert ended.code == 1
    assert "there is no queue 'mall'" in ended.err
    assert "ewe queue ls" in ended.err
