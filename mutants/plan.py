"""Which modules are mutated, and the tests that are meant to prove each of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A module.

    Attributes:
        module: Its name below the package.
        tests: The smallest set that is meant to prove it.
    """

    module: str
    tests: tuple[str, ...]

    @property
    def path(self) -> str:
        return f"src/event_workflow_engine/{self.module.replace('.', '/')}.py"


TARGETS = (
    Target("planner", ("tests/unit/test_planner.py",)),
    Target("state_machine", ("tests/unit/test_state_machine.py",)),
    Target(
        "storage.group_commit",
        (
            "tests/unit/storage/test_group_commit.py",
            "tests/unit/storage/test_group_commit_alone.py",
            "tests/unit/storage/test_group_commit_edges.py",
        ),
    ),
)
