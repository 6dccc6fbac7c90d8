"""The commands that look: what they tell, by page and by filter, for people and as JSON."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.cli.worker import Counted, counts

from event_workflow_engine import NewEvent, WorkflowEngine

if TYPE_CHECKING:
    from tests.integration.cli.kit import Ewe

ALL = ["b-1", "g-1", "g-2", "g-3", "w-1"]


def ids(document: Any) -> list[str]:
    return [row["id"] for row in document["sagas"]]


def test_run_list_tells_every_saga_once_whatever_the_page_size(ewe: Ewe) -> None:
    whole = ewe.json("run", "list")
    assert (ids(whole), whole["next"]) == (ALL, None)
    assert whole["sagas"][0] | {"started_at": "", "ended_at": ""} == {
        "id": "b-1",
        "saga": "bad",
        "version": 1,
        "state": "COMPENSATED",
        "started_at": "",
        "ended_at": "",
        "wake_at": None,
        "owner": None,
        "fence": 1,
        "waits_for": [],
    }
    for size in (1, 2, 5):
        found, after = [], ""
        while after is not None:
            page = ewe.json("run", "list", "--limit", str(size), "--after", after)
            found, after = found + ids(page), page["next"]
        assert found == ALL


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--state", "completed"], ["g-1", "g-2", "g-3"]),
        (["--state", "COMPENSATED"], ["b-1"]),
        (["--state", "running"], []),
        (["--saga", "good", "--after", "g-1"], ["g-2", "g-3"]),
        (["--saga", "bad", "--state", "completed"], []),
    ],
)
def test_run_list_filters(ewe: Ewe, filters: list[str], found: list[str]) -> None:
    assert ids(ewe.json("run", "list", *filters)) == found


def test_run_list_for_people_names_the_next_page(ewe: Ewe) -> None:
    shown = ewe("run", "list", "-n", "2")
    assert "b-1" in shown.out
    assert "COMPENSATED" in shown.out
    assert "g-2" not in shown.out
    assert "more: --after g-1" in shown.out


def test_run_show_tells_steps_attempts_and_compensations(ewe: Ewe) -> None:
    shown = ewe("run", "show", "b-1").out.splitlines()
    assert shown[0].split() == ["b-1", "bad", "v1", "COMPENSATED"]
    steps = {words[0]: words for words in map(str.split, shown[3:]) if words}
    assert steps["stock"][1:3] == ["succeeded", "1"]
    assert steps["stock"][-1] == "undone"
    assert steps["shipment"][1:3] == ["failed", "1"]
    assert "shipment: ValueError: no boat" in shown


def test_run_show_as_json_has_the_whole_typed_history(ewe: Ewe) -> None:
    shown = ewe.json("run", "show", "b-1")
    told: list[tuple[int, str, str]] = []

    async def work(engine: WorkflowEngine) -> None:
        told.extend((event.version, event.type, event.id) for event in await engine.handle("b-1").history())

    ewe.engine(work, worker=False)
    assert [(event["version"], event["type"], event["id"]) for event in shown["history"]] == told
    assert told[-1][1] == "saga-compensated"
    begun = shown["history"][0]["data"]
    assert (begun["saga"], begun["version"], begun["input"], begun["deadline"]) == ("bad", 1, "boat", None)
    assert [(step["step"], step["state"], step["undo"]) for step in shown["steps"]] == [
        ("stock", "succeeded", "undone"),
        ("shipment", "failed", ""),
    ]


def test_watching_a_saga_that_has_ended_tells_it_all_and_ends(ewe: Ewe) -> None:
    lines = [json.loads(line) for line in ewe("run", "watch", "g-1", "--json").out.splitlines()]
    assert lines == ewe.json("run", "show", "g-1")["history"]
    assert ewe("run", "watch", "g-1").out.splitlines()[-1] == "saga g-1 has ended: COMPLETED"


def test_stream_ls_pages_and_takes_a_prefix(ewe: Ewe) -> None:
    everything = ewe.json("stream", "ls")["streams"]
    assert [row["stream"] for row in everything] == ["count-a", *(f"saga-{saga_id}" for saga_id in ALL)]
    assert everything[0]["events"] == 3
    page = ewe.json("stream", "ls", "saga-g", "-n", "2")
    assert ([row["stream"] for row in page["streams"]], page["next"]) == (["saga-g-1", "saga-g-2"], "saga-g-2")
    page = ewe.json("stream", "ls", "saga-g", "--after", page["next"])
    assert ([row["stream"] for row in page["streams"]], page["next"]) == (["saga-g-3"], None)
    assert ewe("stream", "ls", "count").out.split()[3:5] == ["count-a", "3"]


def test_stream_show_goes_both_ways_a_page_at_a_time(ewe: Ewe) -> None:
    page = ewe.json("stream", "show", "count-a", "-n", "2")
    assert [(event["version"], event["data"]) for event in page["events"]] == [(1, {"what": "a"}), (2, {"what": "a"})]
    assert page["next"] == 2
    page = ewe.json("stream", "show", "count-a", "--after", "2")
    assert ([event["data"] for event in page["events"]], page["next"]) == ([{"what": "b"}], None)
    page = ewe.json("stream", "show", "count-a", "--backwards", "-n", "1")
    assert ([event["version"] for event in page["events"]], page["next"]) == ([3], 3)
    assert ewe.json("stream", "show", "count-a", "--after", "3")["events"] == []
    assert '{"what": "b"}' in ewe("stream", "show", "count-a").out


def test_times_for_people_say_that_they_are_in_utc(ewe: Ewe) -> None:
    """And nothing that people read has one that does not say so, nor one that says it in another way."""
    texts = [
        ewe(*words).out
        for words in (["run", "list"], ["run", "show", "b-1"], ["stream", "ls"], ["stream", "show", "count-a"])
    ]
    for text in texts:
        ends = re.findall(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d([^\s,]*)", text)
        assert ends
        assert [end for end in ends if not re.fullmatch(r"(\.\d+)?Z", end)] == []


def test_times_in_json_have_their_offset(ewe: Ewe) -> None:
    row = ewe.json("run", "show", "b-1")
    times = [row["started_at"], row["ended_at"], row["history"][0]["recorded_at"], row["steps"][0]["started_at"]]
    times.append(ewe.json("stream", "ls")["streams"][0]["last_at"])
    assert [datetime.fromisoformat(time).utcoffset() for time in times] == [timedelta()] * 5


def test_stream_tail_filters_and_ends_after_so_many(ewe: Ewe) -> None:
    def tail(*arguments: str) -> list[tuple[str, str]]:
        lines = ewe("stream", "tail", "--json", *arguments).out.splitlines()
        return [(event["stream"], event["type"]) for event in map(json.loads, lines)]

    assert len(tail("--after", "0", "-n", "7")) == 7
    assert tail("--after", "0", "--category", "count", "-n", "3") == [("count-a", "cli-counted")] * 3
    ends = tail("--after", "0", "--type", "saga-completed", "--type", "saga-compensated", "-n", "4")
    assert [kind for _, kind in ends] == ["saga-completed"] * 3 + ["saga-compensated"]
    assert tail("saga-b-1", "--after", "1", "--type", "step-failed", "-n", "1") == [("saga-b-1", "step-failed")]
    assert "count-a @3  cli-counted" in ewe("stream", "tail", "--after", "0", "--category", "count", "-n", "3").out


def test_db_status_counts(ewe: Ewe) -> None:
    status = ewe.json("db", "status")
    assert status["backend"] == "sqlite"
    assert status["estimates"]["sagas"] == 5
    assert (status["sagas_by_state"]["COMPLETED"], status["sagas_by_state"]["COMPENSATED"]) == (3, 1)
    assert status["workers"] == []
    assert "sagas COMPLETED" in ewe("db", "status").out


def test_projection_ls_tells_how_far_each_is(ewe: Ewe) -> None:
    assert ewe.json("projection", "ls")["projections"] == []
    end = 0

    async def work(engine: WorkflowEngine) -> None:
        nonlocal end
        engine.projections.register(counts)
        end = (await engine.store.append("count-a", Counted("z"))).positions[-1]
        await engine.projections.wait_for(counts, end)

    ewe.engine(work)
    (found,) = ewe.json("projection", "ls")["projections"]
    assert (found["name"], found["mode"], found["events"], found["position"]) == ("cli-counts", "async", 4, end)
    assert (found["lag_events"], found["parked"], found["owner"]) == (0, 0, None)
    assert ewe("projection", "ls").out.splitlines()[1].split() == ["cli-counts", "async", "1", "4", str(end), "0", "0"]


def test_stored_text_reaches_no_terminal_as_it_is(ewe: Ewe) -> None:
    nasty = "\x1b[31m\x9b2J\u202e[bold]x[/bold]\r"

    async def work(engine: WorkflowEngine) -> None:
        await engine.store.append("nasty-1", NewEvent("nasty", {"text": nasty, nasty: 1}))

    ewe.engine(work, worker=False)
    for arguments in (["stream", "show", "nasty-1"], ["stream", "tail", "nasty-1", "--after", "0", "-n", "1"]):
        for form in ([], ["--json"]):
            out = ewe(*arguments, *form).out
            assert out.replace("\n", "").isprintable()
            assert "[bold]x[/bold]" in out.replace("\n", "").replace(" ", "")
    assert ewe.json("stream", "show", "nasty-1")["events"][0]["data"]["text"] == nasty
    error = ewe("run", "show", nasty).err
    assert error.removesuffix("\n").isprintable()


def test_what_goes_into_a_pipe_is_not_folded(ewe: Ewe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    long = "w-" + "1" * 150
    ewe.start(long)
    lines = [line for line in ewe("run", "list").out.splitlines() if long in line]
    assert ["PENDING" in line for line in lines] == [True]
