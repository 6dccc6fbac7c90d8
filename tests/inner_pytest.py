"""A pytest that a test runs in a process of its own, as a reader of the documentation would."""

from __future__ import annotations

from typing import Final

_HOUSE_ONLY: Final = ("hypothesispytest", "xdist", "xdist.looponfail", "timeout", "anyio", "platformdirs")

ENVIRONMENT: Final = {"PYTEST_ADDOPTS": " ".join(f"-p no:{name}" for name in _HOUSE_ONLY)}
"""Without the plugins that only these tests use: importing them takes longer than all the rest of such a run."""
