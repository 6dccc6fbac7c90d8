"""The sagas that an engine may run: every registered version of each name."""

from __future__ import annotations

from typing import Any

import msgspec

from event_workflow_engine.errors import DefinitionError, NotRegisteredError
from event_workflow_engine.planner import Dag
from event_workflow_engine.saga import Saga

__all__ = ["Definitions"]


class Definitions:
    """Registered sagas by name and version. Registration is sync; the same object again changes nothing."""

    def __init__(self) -> None:
        self._sagas: dict[tuple[str, int], Saga[Any, Any]] = {}
        self._dags: dict[tuple[str, int], Dag] = {}
        self._newest: dict[str, int] = {}
        self.names_json = "[]"
        """All names with their versions, as the claims want them."""

    def add(self, saga: Saga[Any, Any]) -> bool:
        """Register a saga; whether it was new.

        Raises:
            DefinitionError: It is no saga, or another one has the name and version.
        """
        _check_saga(saga)
        key = saga.name, saga.version
        known = self._sagas.get(key)
        if known is saga:
            return False
        if known is not None:
            raise DefinitionError(
                f"saga {saga.name!r} version {saga.version} is registered already, with another definition: "
                "give the changed one a higher version=, so that running sagas keep the code they began with"
            )
        self._sagas[key] = saga
        self._dags[key] = Dag({name: spec.after for name, spec in saga.specs.items()})
        self._newest[saga.name] = max(saga.version, self._newest.get(saga.name, 0))
        self.names_json = msgspec.json.encode(sorted(self._sagas)).decode()
        return True

    def resolve(self, saga: Saga[Any, Any] | str) -> Saga[Any, Any]:
        """A registered saga, by itself or by name (then the newest version).

        Raises:
            NotRegisteredError: It is not registered.
            DefinitionError: It is neither a saga nor a name.
        """
        if isinstance(saga, str):
            version = self._newest.get(saga)
            if version is None:
                known = ", ".join(sorted(self._newest)) or "none"
                raise NotRegisteredError(
                    f"no saga {saga!r} is registered (known: {known}): call engine.register(…) first"
                )
            return self._sagas[saga, version]
        _check_saga(saga)
        if self._sagas.get((saga.name, saga.version)) is not saga:
            raise NotRegisteredError(
                f"saga {saga.name!r} version {saga.version} is not registered with this engine: call "
                "engine.register(…) first; one that ran unregistered could not be resumed"
            )
        return saga

    def told(self) -> str | None:
        """What others are told of it when the engine is entered: nothing yet where nothing is registered so early."""
        return self.names_json if self._sagas else None

    def find(self, name: str, version: int) -> Saga[Any, Any] | None:
        """A registered version."""
        return self._sagas.get((name, version))

    def dag(self, saga: Saga[Any, Any]) -> Dag:
        """The compiled graph of a registered saga."""
        return self._dags[saga.name, saga.version]

    def __len__(self) -> int:
        """How many versions are registered."""
        return len(self._sagas)


def _check_saga(given: object) -> None:
    if not isinstance(given, Saga):
        remedy = 'decorate it with @saga("its-name")' if callable(given) else "make it by Saga(name, steps)"
        raise DefinitionError(f"{given!r} is no saga: {remedy}")
