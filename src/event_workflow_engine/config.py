"""The engine's configuration: one frozen value, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from event_workflow_engine.clock import Duration, seconds
from event_workflow_engine.errors import DefinitionError

__all__ = ["EngineConfig"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How an engine runs.

    Attributes:
        worker: Run sagas here. ``False``: only start, signal and look; another process runs them. Default ``True``.
        max_running: Sagas in memory at once; further ones wait in the store. Default 1,000.
        threads: Threads for sync actions, and as many of their own for sync compensations. Default 32.
        lease: How long an unchanged heartbeat leaves this worker alive, whoever looks (not on SQLite, where a file lock
            tells at once). Seconds or timedelta. Default 15 s.
        shutdown_timeout: How long leaving the engine waits for running steps before it cancels them. Those in threads
            cannot be cancelled, and are waited for to their end. Default 10 s.
        auto_upgrade: Migrate the schema on entering; ``None``: the backend's custom (SQLite: yes).

    Raises:
        DefinitionError: A value is out of its range.
    """

    worker: bool = True
    max_running: int = 1000
    threads: int = 32
    lease: Duration = 15.0
    shutdown_timeout: Duration = 10.0
    auto_upgrade: bool | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_running < 1 or self.threads < 1:
            raise DefinitionError("EngineConfig: max_running and threads must be at least 1")
        if seconds(self.lease) <= 0 or seconds(self.shutdown_timeout) < 0:
            raise DefinitionError("EngineConfig: lease must be above 0, shutdown_timeout not below it")
