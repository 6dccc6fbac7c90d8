"""The commands that act, beside a worker process on the same file."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import textwrap
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from tests.integration.cli.worker import Counted, counts, waiting

from event_workflow_engine.cli.main import execute

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.integration.cli.kit import Ewe

    from event_workflow_engine import WorkflowEngine


def finished(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What it told since it was read last. Not `communicate`, which loses what `readline` has read ahead."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as out, process.stderr as err:
        lines = [json.loads(line) for line in out]
        assert process.wait(timeout=30) == 0, err.read()
    return lines


@pytest.mark.timeout(60)
def test_a_saga_is_watched_and_signalled_while_a_worker_runs_it(empty: Ewe) -> None:
    with empty.worker():
        empty.start("w-1")
        watcher = empty.popen("run", "watch", "w-1", "--json")
        assert watcher.stdout is not None
        first = json.loads(watcher.stdout.readline())
        assert first["type"] == "saga-started"
        sent = empty.json("run", "signal", "w-1", "go", '"ahead"')
        assert sent == {"id": "w-1", "signal": "go", "sent": True}
        told = [first, *finished(watcher)]
    assert told[-1]["type"] == "saga-completed"
    assert told[-1]["data"]["result"] == "ahead"
    assert told == empty.json("run", "show", "w-1")["history"]
    assert [event["version"] for event in told] == list(range(1, len(told) + 1))


@pytest.mark.timeout(60)
def test_a_saga_that_was_accepted_elsewhere_is_pending_until_a_worker_runs_it(empty: Ewe) -> None:
    empty.start("w-1")
    assert [row["id"] for row in empty.json("run", "list", "--state", "pending")["sagas"]] == ["w-1"]
    with empty.worker():
        watcher = empty.popen("stream", "tail", "saga-w-1", "--after", "0", "--type", "step-succeeded", "-n", "1")
        watcher.communicate(timeout=30)
        assert watcher.returncode == 0
        assert [row["id"] for row in empty.json("run", "list", "--state", "running")["sagas"]] == ["w-1"]


@pytest.mark.timeout(60)
def test_a_cancelled_saga_is_undone_and_keeps_the_reason(empty: Ewe) -> None:
    with empty.worker():
        empty.start("w-1")
        watcher = empty.popen("run", "watch", "w-1", "--json")
        assert watcher.stdout is not None
        while json.loads(watcher.stdout.readline())["type"] != "step-succeeded":
            pass
        assert empty("run", "cancel", "w-1", "--reason", "changed my mind").code == 0
        assert finished(watcher)[-1]["type"] == "saga-compensated"
    shown = empty.json("run", "show", "w-1")
    assert shown["state"] == "COMPENSATED"
    assert ("book", "succeeded", "undone") in [(step["step"], step["state"], step["undo"]) for step in shown["steps"]]
    reasons = [event["data"]["reason"] for event in shown["history"] if event["type"] == "cancel-requested"]
    assert reasons == ["changed my mind"]


@pytest.mark.timeout(60)
def test_a_paused_saga_goes_on_when_it_is_resumed(empty: Ewe) -> None:
    with empty.worker():
        empty.start("w-1")
        watcher = empty.popen("run", "watch", "w-1", "--json")
        assert watcher.stdout is not None
        seen = []
        for said, awaited in (("pause", "saga-paused"), ("resume", "saga-resumed")):
            while "step-succeeded" not in seen:
                seen.append(json.loads(watcher.stdout.readline())["type"])
            assert empty.json("run", said, "w-1")["sent"] is True
            while awaited not in seen:
                seen.append(json.loads(watcher.stdout.readline())["type"])
        empty.json("run", "signal", "w-1", "go", '"ahead"')
        assert finished(watcher)[-1]["type"] == "saga-completed"


def test_a_signal_waits_in_the_store_where_no_worker_runs(ewe: Ewe) -> None:
    assert ewe("run", "signal", "w-1", "go", '{"a": [1, null]}').code == 0
    (entry,) = ewe.json("stream", "show", "inbox-w-1")["events"]
    assert (entry["type"], entry["data"]) == ("signal-sent", {"name": "go", "payload": {"a": [1, None]}})


def test_a_signal_that_the_saga_does_not_wait_for_is_told_of(empty: Ewe) -> None:
    async def work(engine: WorkflowEngine) -> None:
        engine.register(waiting)
        await engine.start(waiting, "boat", id="w-1")
        async with asyncio.timeout(30), aclosing(engine.store.follow(after=0)) as events:
            async for event in events:
                if event.type == "step-succeeded":  # with which its row says what it waits for
                    return

    empty.engine(work)
    assert (
        "signal 'og' sent unchecked (--app checks its type), for which it does not wait now: it waits for 'go'"
        in empty("run", "signal", "w-1", "og").out
    )
    assert "for which" not in empty("run", "signal", "w-1", "go").out


@pytest.fixture
def typed(ewe: Ewe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that has the signal that the saga w-1 waits for, with its type."""
    name = f"cli_typed_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(
        "from event_workflow_engine import Signal, WorkflowEngine\n"
        "OTHER, GO = Signal('other', str), Signal('go', int)\n"
        f"engine = WorkflowEngine({ewe.url!r})\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("place", ["", ":GO", ":engine"])
def test_a_signal_of_the_wrong_type_is_refused_where_its_code_is_at_hand(ewe: Ewe, typed: str, place: str) -> None:
    ended = ewe("run", "signal", "w-1", "go", '"ahead"', "--app", typed + place, "--json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        "ewe: EncodeError: signal 'go': its JSON does not fit int: Expected `int`, got `str`: nothing was sent\n"
    )
    assert ewe.json("stream", "ls", "inbox-")["streams"] == []
    sent = ewe("run", "signal", "w-1", "go", "7", "--app", typed + place)
    assert sent.out == "saga w-1: signal 'go' sent; see: ewe run watch w-1\n"


@pytest.mark.parametrize(("name", "place"), [("og", ""), ("og", ":GO"), ("go", ":OTHER"), ("og", ":engine")])
def test_a_signal_whose_type_is_not_where_it_is_said_to_be_is_not_sent(
    ewe: Ewe, typed: str, name: str, place: str
) -> None:
    ended = ewe("run", "signal", "w-1", name, "7", "--app", typed + place)
    assert (ended.code, ended.out) == (1, "")
    assert f"it is no Signal named {name!r}, and there is none beside it" in ended.err
    assert ewe.json("stream", "ls", "inbox-")["streams"] == []


def test_the_help_says_what_a_signal_of_the_wrong_type_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", "signal", "--help"]) == 0
    assert "the saga is undone" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [["signal", "g-1", "go"], ["cancel", "g-1"]])
def test_nothing_is_sent_to_a_saga_that_has_ended(ewe: Ewe, arguments: list[str]) -> None:
    ended = ewe("run", *arguments)
    assert (ended.code, ended.out) == (1, "")
    assert "has ended as COMPLETED" in ended.err
    assert ewe.json("stream", "ls", "inbox-")["streams"] == []


@pytest.fixture
def shop(ewe: Ewe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ewe:
    """A projection that was fed, and beside it a module whose fold says something else."""
    (tmp_path / "cli_shop.py").write_text(
        textwrap.dedent("""
            from tests.integration.cli.worker import Count, Counted
            from event_workflow_engine import DocumentProjection

            counts = DocumentProjection("cli-counts", Count)
            live = DocumentProjection("cli-live", Count, mode="live")

            @counts.on(Counted, key=lambda e: e.what)
            @live.on(Counted, key=lambda e: e.what)
            def count(known, _):
                return Count((known or Count()).n + 100)
        """)
    )
    (tmp_path / "cli_broken.py").write_text("1 / 0\n")

    async def work(engine: WorkflowEngine) -> None:
        engine.projections.register(counts)
        end = (await engine.store.append("count-a", Counted("z"))).positions[-1]
        await engine.projections.wait_for(counts, end)

    ewe.engine(work)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield ewe
    for name in ("cli_shop", "cli_broken"):
        sys.modules.pop(name, None)


def documents(ewe: Ewe) -> dict[str, int]:
    found = {}

    async def work(engine: WorkflowEngine) -> None:
        engine.projections.register(counts)
        for key in ("a", "b", "z"):
            document = await engine.projections.get(counts, key)
            found[key] = 0 if document is None else document.n

    ewe.engine(work, worker=False)
    return found


@pytest.mark.parametrize("target", ["cli_shop:counts", "cli_shop"])
def test_a_projection_is_rebuilt_from_the_definition_that_is_named(shop: Ewe, target: str) -> None:
    assert documents(shop) == {"a": 2, "b": 1, "z": 1}
    done = shop.json("projection", "rebuild", "cli-counts", "--app", target)
    assert (done["name"], done["rebuilt"], done["events"]) == ("cli-counts", True, 4)
    assert documents(shop) == {"a": 200, "b": 100, "z": 100}
    log = logging.getLogger("event_workflow_engine.scheduler")
    assert log.isEnabledFor(logging.WARNING), "it is quiet while the command runs, not behind it"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cli-counts"], "--app module:object"),
        (["cli-counts", "--app", "cli_shop:nothing"], "has no attribute"),
        (["cli-counts", "--app", "cli_gone:counts"], "No module named"),
        (["cli-counts", "--app", "cli_broken"], "ZeroDivisionError"),
        (["cli-counts", "--app", "cli_shop:live"], "no projection named"),
        (["cli-counts", "--app", "cli_shop:count"], "no projection named"),
        (["cli-live", "--app", "cli_shop"], "nothing to rebuild"),
    ],
)
def test_what_cannot_be_rebuilt_is_told_and_left_as_it_is(shop: Ewe, arguments: list[str], said: str) -> None:
    ended = shop("projection", "rebuild", *arguments)
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
    assert documents(shop) == {"a": 2, "b": 1, "z": 1}


def test_a_projection_that_the_store_does_not_know_is_not_made(
    ewe: Ewe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    ended = ewe("projection", "rebuild", "cli-counts", "--app", "tests.integration.cli.worker:counts")
    assert ended.code == 1
    assert "there is no projection 'cli-counts'" in ended.err
    assert ewe.json("projection", "ls")["projections"] == []


@pytest.mark.timeout(60)
def test_a_projection_that_a_worker_feeds_is_left_to_it(shop: Ewe) -> None:
    with shop.worker():
        watcher = shop.popen("stream", "tail", "--after", "0", "--type", "cli-counted", "-n", "4")
        watcher.communicate(timeout=30)
        while shop.json("projection", "ls")["projections"][0]["owner"] is None:
            pass
        ended = shop("projection", "rebuild", "cli-counts", "--app", "cli_shop")
        assert (ended.code, ended.out) == (1, "")
        assert "another worker" in ended.err
    assert documents(shop) == {"a": 2, "b": 1, "z": 1}
