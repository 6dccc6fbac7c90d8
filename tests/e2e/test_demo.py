"""`ewe demo`: what it promises, from outside and with its parts tampered with."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from event_workflow_engine.cli.demo.command import check
from event_workflow_engine.cli.demo.orders import Entry
from event_workflow_engine.cli.demo.play import DemoError, Outcome, play

EWE = [sys.executable, "-m", "event_workflow_engine.cli.main"]


def ewe(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EWE, *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(60)
@pytest.mark.proves("killed", store="sqlite", kills=1)
def test_one_order_is_done_and_one_undone_though_the_worker_was_killed_in_the_middle() -> None:
    began = time.monotonic()
    ended = ewe("demo", "--json")
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - began < 15
    told: dict[str, Any] = json.loads(ended.stdout)
    assert told["as_promised"] is True
    assert told["orders"] == [
        {"id": "order-lamp", "state": "COMPLETED"},
        {"id": "order-boat", "state": "COMPENSATED"},
    ]
    assert told["killed"]["pid"] != told["second_worker"]
    assert not alive(told["killed"]["pid"])
    assert not alive(told["second_worker"])
    assert not Path(told["url"].removeprefix("sqlite:///")).exists(), "it cleans up behind itself"

    before = [event for event in told["events"] if event["position"] <= told["killed"]["after_position"]]
    paid = [e for e in before if e["type"] == "step-succeeded" and e["data"]["step"] == "payment"]
    shipping = [e for e in before if e["type"] == "step-started" and e["data"]["step"] == "shipment"]
    assert len(paid) == len(shipping) == 2, "it was killed when both were paid and both shipments had begun"
    assert not [e for e in before if e["type"] in ("saga-completed", "saga-failed", "rollback-planned")]

    keys = [entry["key"] for entry in told["ledger"]]
    assert len(keys) == len(set(keys)), "each effect happened once"
    assert [entry["order"] for entry in told["ledger"] if entry["account"] == "parcels"] == ["order-lamp"]
    assert told["balances"] == {
        "order-lamp": {"stock": -1, "cash": 4_900, "parcels": 1},
        "order-boat": {"stock": 0, "cash": 0, "parcels": 0},
    }


@pytest.mark.timeout(60)
@pytest.mark.proves("killed", store="sqlite", kills=1)
def test_the_picture_fits_80_columns_and_marks_the_kill_between_the_events() -> None:
    ended = ewe("demo")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if "…" in line] == []
    kill = next(number for number, line in enumerate(lines) if "SIGKILL" in line)
    above, below = "\n".join(lines[:kill]), "\n".join(lines[kill:])
    assert above.count("step-started           shipment") == 2
    assert "saga-completed" not in above
    assert "saga-compensated" not in above
    assert below.count("again after a crash") == 2
    assert "saga-completed" in below
    assert "saga-compensated" in below


@pytest.mark.timeout(60)
@pytest.mark.proves("killed", store="sqlite", kills=1)
async def test_whatever_is_not_as_promised_is_a_fault(tmp_path: Path) -> None:
    outcome = await play(tmp_path, lambda _: None)
    assert outcome.faults() == []
    check(outcome)

    def faults(**changed: Any) -> str:
        other: Outcome = dataclasses.replace(outcome, **changed)
        assert other.as_plain()["as_promised"] is False
        with pytest.raises(DemoError):
            check(other)
        return "; ".join(other.faults())

    assert "order-boat ended as COMPLETED" in faults(states={**outcome.states, "order-boat": "COMPLETED"})
    assert "order-lamp ended as None" in faults(states={"order-boat": "COMPENSATED"})
    assert "twice" in faults(ledger=[*outcome.ledger, outcome.ledger[0]])
    assert "does not balance" in faults(ledger=outcome.ledger[:-1])
    assert "does not balance" in faults(ledger=[*outcome.ledger, Entry("k", "order-boat", "cash", 1, "one cent")])


@pytest.mark.timeout(60)
@pytest.mark.proves("killed", store="sqlite", kills=1)
def test_kept_files_can_be_looked_at_with_the_other_commands(tmp_path: Path) -> None:
    ended = ewe("demo", "--keep", TMPDIR=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    (database,) = tmp_path.glob("ewe-demo-*/demo.db")
    shown = ewe("run", "show", "order-boat", "--json", EWE_URL=f"sqlite:///{database}")
    assert json.loads(shown.stdout)["state"] == "COMPENSATED"
