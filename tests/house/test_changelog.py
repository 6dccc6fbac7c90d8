"""CHANGELOG.md keeps the form of Keep a Changelog, which people and tools read."""

from __future__ import annotations

import re
import tomllib
from datetime import date

from tests.house.sources import ROOT

SECTION = re.compile(r"^## \[(?P<version>Unreleased|\d+\.\d+\.\d+)\](?: - (?P<day>\d{4}-\d{2}-\d{2}))?$")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def lines() -> list[str]:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()


def sections() -> list[re.Match[str] | None]:
    return [SECTION.match(line) for line in lines() if line.startswith("## ")]


def test_it_starts_with_its_title_and_the_unreleased_changes() -> None:
    assert lines()[0] == "# Changelog"
    first = sections()[0]
    assert first is not None
    assert first["version"] == "Unreleased"


def test_every_release_has_a_version_and_a_day() -> None:
    assert all(sections()), "a section is `## [1.2.3] - 2030-01-31` or `## [Unreleased]`"
    for section in sections()[1:]:
        assert section is not None
        assert section["day"] is not None
        date.fromisoformat(section["day"])


def test_releases_go_down_from_the_newest() -> None:
    versions = [tuple(map(int, section["version"].split("."))) for section in sections()[1:] if section]
    assert versions == sorted(set(versions), reverse=True)
    with (ROOT / "pyproject.toml").open("rb") as file:
        current = tuple(map(int, tomllib.load(file)["project"]["version"].split(".")))
    assert not versions or versions[0] <= current


def test_changes_are_sorted_by_kind() -> None:
    kinds = [line.removeprefix("### ") for line in lines() if line.startswith("### ")]
    assert set(kinds) <= KINDS
    entries = [line for line in lines() if line.startswith("- ")]
    assert entries, "a change that nobody can read about"
