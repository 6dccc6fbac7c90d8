"""Stored text cannot steer the terminal, and JSON holds every field."""

from __future__ import annotations

import io
import json
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from event_workflow_engine.cli.output import as_json, cell, clean, plain
from event_workflow_engine.history import Raw, RollbackPlanned, StepStarted, StepSucceeded

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text())
@example("\x1b]0;title\x07")
@example("\x9b31m")
@example("\u202eabc\u2066")
@example("a\nb\rc\td\x7f")
def test_no_control_or_format_character_gets_through(text: str) -> None:
    assert not {unicodedata.category(char) for char in clean(text)} & STEERING


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_all_other_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_markup_and_emoji_codes_in_stored_text_are_shown_and_not_read() -> None:
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, no_color=True).print(cell("[red]x[/red] :warning:"))
    assert out.getvalue() == "[red]x[/red] :warning:\n"


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner)))
@example("\x1b[2J\x9b\x7f\u202e")
def test_json_is_one_line_of_printable_ascii_and_says_the_same(document: object) -> None:
    line = as_json(document)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == document


def test_facts_are_told_with_all_their_fields() -> None:
    told = {"step": "pay", "attempt": 1, "interruptions": 0, "undo": None, "child": None}
    assert plain(StepStarted("pay")) == told
    assert plain(StepSucceeded("pay", Raw(b'{"id": [1, null]}'))) == {"step": "pay", "result": {"id": [1, None]}}
    assert plain(RollbackPlanned()) == {"plan": [], "skipped": []}
