"""The conformance suite: what is written there is run."""

from __future__ import annotations

from collections import Counter

from event_workflow_engine.testing.conformance import StorageConformance


def test_no_case_hides_another_of_its_name() -> None:
    names = Counter(name for part in StorageConformance.__mro__ for name in vars(part) if name.startswith("test_"))
    assert len(names) > 100
    assert [name for name, number in names.items() if number > 1] == []
