"""Events: how a type gets its name in the log, what a recorded event carries, and old versions read as new ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from event_workflow_engine.errors import DefinitionError, OutsideSagaError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CURRENT_EVENT",
    "NO_METADATA",
    "REGISTRY",
    "EventRegistry",
    "EventType",
    "Metadata",
    "NewEvent",
    "RecordedEvent",
    "check_event_name",
    "current_event",
    "event",
    "upcaster",
]

T = TypeVar("T")
C = TypeVar("C", bound=type)
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
U = TypeVar("U", bound=Upcaster)

_LONGEST_NAME: Final = 200
_HIGHEST_VERSION: Final = 2**31 - 1
_GOOD_NAME: Final = re.compile(r"[^\s+\x00-\x1f\x7f-\x9f\ud800-\udfff]+").fullmatch


class Metadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known about an event beside its payload.

    Attributes:
        correlation_id: Shared by all that one first cause led to.
        causation_id: The id of what led to it directly.
        saga_id: The saga in which it was appended.
        actor: Who.
        traceparent: W3C trace context.
        extra: Whatever else the caller gave.
    """

    correlation_id: str | None = None
    causation_id: str | None = None
    saga_id: str | None = None
    actor: str | None = None
    traceparent: str | None = None
    extra: Mapping[str, str] = {}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Metadata:
        """From a mapping; unknown keys go to `extra`, as text.

        Raises:
            DefinitionError: It is no mapping, or a known key has a value that is no text.

        Example:
            >>> Metadata.of({"actor": "ann", "shop": 7}).extra
            {'shop': '7'}
        """
        if not isinstance(values, Mapping):
            raise DefinitionError(f"an event's metadata must be a mapping, not {values!r}")
        known: dict[str, Any] = {}
        extra: dict[str, str] = {}
        for key, value in values.items():
            if key in _METADATA_FIELDS:
                if value is not None and not isinstance(value, str):
                    raise DefinitionError(f"an event's metadata: {key} must be text or None, not {value!r}")
                known[key] = value
            elif key != "extra":
                extra[str(key)] = str(value)
        inner = values.get("extra") or {}
        if not isinstance(inner, Mapping):
            raise DefinitionError(f"an event's metadata: extra must be a mapping, not {inner!r}")
        return cls(**known, extra={**{str(key): str(value) for key, value in inner.items()}, **extra})

    def over(self, below: Metadata) -> Metadata:
        """These, and where they say nothing what `below` says."""
        known = {name: getattr(self, name) or getattr(below, name) for name in _METADATA_FIELDS}
        return Metadata(**known, extra={**below.extra, **self.extra})


_METADATA_FIELDS: Final = frozenset(Metadata.__struct_fields__) - {"extra"}
NO_METADATA: Final = Metadata()


@dataclass(frozen=True)
class NewEvent:
    """An event by name, for plain dicts and for own ids.

    Attributes:
        type: The event type's name.
        data: The payload.
        id: Unique over the store; a UUID version 7 when ``None``. Appending it again changes nothing.
        version: The payload's schema version.
        metadata: `Metadata`'s fields by name; unknown keys go to ``extra``.
    """

    type: str
    data: Any
    _: KW_ONLY
    id: str | None = None
    version: int = 1
    metadata: Mapping[str, Any] | None = None


class RecordedEvent(msgspec.Struct, Generic[T], frozen=True):
    """An event as it stands in the log.

    Attributes:
        id: Unique over the store.
        type: The event type's name.
        data: The payload: of the type registered under `type`, else plain dicts, lists and scalars.
        stream: The stream's name.
        version: Its place in the stream, from 1.
        position: Its place in the whole store.
        recorded_at: When it was stored, aware, in UTC.
        metadata: What is known beside.
    """

    id: str
    type: str
    data: T
    stream: str
    version: int
    position: int
    recorded_at: datetime
    metadata: Metadata


class EventType(msgspec.Struct, frozen=True):
    """A registered event type."""

    name: str
    version: int
    python_type: type


class EventRegistry:
    """Which Python type an event type's name stands for, and the chain of upcasters to it."""

    def __init__(self) -> None:
        self._by_name: dict[str, EventType] = {}
        self._by_type: dict[type, EventType] = {}
        self._upcasters: dict[tuple[str, int], Upcaster] = {}
        self.revision = 0
        """Grows with each registration, for what is derived from the registry and cached."""

    def register(self, name: str, version: int, python_type: type) -> None:
        """Name a type. The same class again (a module that is reloaded) replaces itself.

        A class may have several names: it is written under the one given last, and read under all.

        Raises:
            DefinitionError: The name or version is bad, or another class has the name.
        """
        check_event_name(name)
        if not isinstance(python_type, type):
            raise DefinitionError(f"event {name!r} names {python_type!r}, which is no class")
        _check_version(version, f"event {name!r}: version")
        known = self._by_name.get(name)
        if known is not None and _address(known.python_type) != _address(python_type):
            raise DefinitionError(
                f"event name {name!r} is taken by {_address(known.python_type)}; {_address(python_type)} needs another"
            )
        if known is not None:
            self._by_type.pop(known.python_type, None)
        self._by_name[name] = self._by_type[python_type] = EventType(name, version, python_type)
        self.revision += 1

    def register_upcaster(self, name: str, from_version: int, fn: Upcaster) -> None:
        """Add the step from one schema version to the next.

        Raises:
            DefinitionError: The version is bad, or has an upcaster from elsewhere.
        """
        check_event_name(name)
        _check_version(from_version, f"upcaster of {name!r}: from_version")
        known = self._upcasters.get((name, from_version))
        if known is not None and _address(known) != _address(fn):
            raise DefinitionError(
                f"event {name!r} has an upcaster from version {from_version} already: {_address(known)}"
            )
        self._upcasters[name, from_version] = fn
        self.revision += 1

    def by_name(self, name: str) -> EventType | None:
        """The type registered under a name."""
        return self._by_name.get(name)

    def by_type(self, python_type: type) -> EventType | None:
        """How a class is registered."""
        return self._by_type.get(python_type)

    def names_for(self, base: type) -> frozenset[str]:
        """The names of all registered types that are `base` or derive from it."""
        return frozenset(name for name, known in self._by_name.items() if _derives(known.python_type, base))

    def upcast_chain(self, name: str, version: int) -> list[Upcaster]:
        """The upcasters from a stored version up to where the chain ends."""
        chain = []
        while (fn := self._upcasters.get((name, version))) is not None:
            chain.append(fn)
            version += 1
        return chain

    def fingerprint(self, names: Iterable[str]) -> str:
        """What changes when payloads of these types are read in another way: by version, or by their upcasters.

        An upcaster counts by its qualified name: one that is changed in place is not seen.
        """
        lines = []
        for name in sorted(set(names)):
            known = self._by_name.get(name)
            steps = sorted((step, _address(fn)) for (of, step), fn in self._upcasters.items() if of == name)
            lines.append(f"{name}@{known.version if known else 0}:{steps}")
        return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest() if lines else ""


def check_event_name(name: object) -> None:
    """Check that `name` may name an event type.

    Raises:
        DefinitionError: It may not.
    """
    # "+" joins the names of the facts in a packed record.
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not _GOOD_NAME(name):
        raise DefinitionError(
            f"event name {name!r}: 1 to {_LONGEST_NAME} characters, no white space, no control characters, no '+'"
        )


def _check_version(version: int, what: str) -> None:
    if type(version) is not int or not 1 <= version <= _HIGHEST_VERSION:
        raise DefinitionError(f"{what} {version!r} must be an integer from 1")


def _derives(kind: type, base: type) -> bool:
    if kind is base:
        return True
    try:
        return issubclass(kind, base)
    except TypeError:  # a TypedDict or a protocol, which cannot be asked
        return False


def _address(thing: Any) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


REGISTRY: Final = EventRegistry()
"""The process's registry, which `event` and `upcaster` fill."""


def event(name: str, *, version: int = 1) -> Callable[[C], C]:
    """Name a class for the log: a dataclass, Struct, TypedDict or Pydantic model.

    The name is what is stored, so the class may be renamed and moved at will; the name may not.

    Args:
        name: The event type's name, past tense by custom, unique in the process.
        version: The payload's schema version, to be raised with each change that old payloads do not fit.

    Raises:
        DefinitionError: The name or version is bad, or another class has the name.
    """
    given: object = name
    if isinstance(given, type):
        raise DefinitionError(f'@event on {given.__qualname__} needs the name to store: @event("its-name")')

    def name_it(python_type: C) -> C:
        REGISTRY.register(name, version, python_type)
        return python_type

    return name_it


def upcaster(name: str, *, from_version: int) -> Callable[[U], U]:
    """Read payloads of one schema version as the next: dict in, dict out. They chain.

    Raises:
        DefinitionError: The version is bad, or has an upcaster already.
    """

    def register(fn: U) -> U:
        REGISTRY.register_upcaster(name, from_version, fn)
        return fn

    return register


CURRENT_EVENT: Final[ContextVar[RecordedEvent[Any] | Callable[[], RecordedEvent[Any]] | None]] = ContextVar(
    "ewe_event", default=None
)
"""The event that is being handled, or how to make it: a fold over thousands rarely asks.

What makes it is asked each time, so that one maker may serve all events of a fold; it remembers what it made.
"""


def current_event() -> RecordedEvent[Any]:
    """The whole event whose payload a handler, fold or key function was given.

    Raises:
        OutsideSagaError: Called outside of one.
    """
    present = CURRENT_EVENT.get()
    if present is None:
        raise OutsideSagaError("current_event() was called outside of an event's handler, fold or key function")
    return present if isinstance(present, RecordedEvent) else present()
