"""The cells example: one of several stores is killed, and every order and every sale ends once all the same."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from tests.docs.pages import ROOT, matches

PROGRAM = ROOT / "examples" / "cells.py"
PAGE = ROOT / "docs" / "explanation" / "past-one-postgresql.md"
QUOTED = re.compile(r"^\$ python examples/cells\.py\n(?P<shown>.*?)^```$", re.MULTILINE | re.DOTALL)
AGAIN = "steps of it that were cut off and ran again: "


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.proves("killed", store="sqlite", kills=1)
def test_a_killed_cell_costs_its_own_tenants_time_and_nobody_an_order_or_a_sale() -> None:
    """It prints what the page quotes, but for how many steps the kill met under way."""
    ended = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=55, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert ended.stderr == ""
    (again,) = [line.removeprefix(AGAIN) for line in ended.stdout.splitlines() if line.startswith(AGAIN)]
    assert int(again) > 0, "the kill cut nothing off"
    quoted = QUOTED.search(PAGE.read_text(encoding="utf-8"))
    assert quoted is not None
    shown = ["…" if line.startswith(AGAIN) else line for line in quoted["shown"].splitlines()]
    assert matches(shown, ended.stdout), ended.stdout
