"""Whether a unit is well formed: the checks that need no store, shared by the backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from event_workflow_engine.errors import DefinitionError, EncodeError, VersionConflictError
from event_workflow_engine.storage.names import check_name, check_text
from event_workflow_engine.storage.port import ANY_VERSION, STREAM_EXISTS

if TYPE_CHECKING:
    from event_workflow_engine.storage.port import Append, NewRecord, Unit

__all__ = ["UNIT_BYTES", "check_size", "check_unit", "check_version", "is_plain"]

_INT64_MAX: Final = 2**63 - 1
_MOST_EVENTS: Final = 1_000_000

UNIT_BYTES: Final = 512 * 2**20
"""Most bytes of payloads and metadata in one unit. PostgreSQL takes it as one message, ends the connection at one of
1 GiB, and gets rows beside it; SQLite takes a record of 10**9 bytes at most."""


def check_unit(unit: Unit) -> None:
    """Check types and bounds of all that `unit` appends; its rows are checked where they are applied.

    Raises:
        DefinitionError: Something does not fit; says what.
    """
    check_name(unit.id, "a unit's id")
    _check_int(unit.at, "Unit.at", 0)
    first = True
    for append in unit.appends:
        check_name(append.stream, "a stream's name")
        _check_int(append.expected, "Append.expected", STREAM_EXISTS)
        for record in append.records:
            _check_record(record)
            if first and record.id != unit.id:
                raise DefinitionError(
                    f"unit {unit.id!r} begins with record {record.id!r}: a unit's id is that of its first record"
                )
            first = False


def check_size(unit: Unit) -> None:
    """Check that a backend can take `unit` at all: sent, it would be refused as by a store that is away, each time.

    Raises:
        EncodeError: It is too large.
    """
    size = 0
    for append in unit.appends:
        for record in append.records:
            size += len(record.data) + len(record.metadata)
    if size > UNIT_BYTES:
        raise EncodeError(
            f"stream {unit.appends[0].stream!r}: {size:,} bytes of JSON in one unit, which may have {UNIT_BYTES:,}: "
            "write it in several, or keep what is large elsewhere, a file or an object store, and put its name into "
            "the payload"
        )


def is_plain(record: NewRecord) -> bool:
    """Whether a record has the types that it should have; what is odd is for `check_unit` to name."""
    return (
        record.data.__class__ is bytes
        and record.id.__class__ is str
        and record.type.__class__ is str
        and record.count > 0
    )


def check_version(append: Append, version: int) -> None:
    """Check that a stream at `version` is as `append` expects it.

    Raises:
        VersionConflictError: It is not.
    """
    expected = append.expected
    if expected in (version, ANY_VERSION):
        return
    if expected != STREAM_EXISTS:
        raise VersionConflictError(append.stream, expected or "no_stream", version)
    if not version:
        raise VersionConflictError(append.stream, "stream_exists", version)


def _check_record(record: NewRecord) -> None:
    check_name(record.id, "a record's id")
    check_text(record.type, "a record's type")
    _check_int(record.schema, "NewRecord.schema", 0)
    _check_int(record.count, "NewRecord.count", 1, _MOST_EVENTS)
    for name, value in (("data", record.data), ("metadata", record.metadata)):
        if type(value) is not bytes:
            raise DefinitionError(f"NewRecord.{name} of {record.id!r} must be bytes, not {type(value).__name__}")


def _check_int(value: object, what: str, least: int, most: int = _INT64_MAX) -> None:
    if type(value) is not int or not least <= value <= most:
        raise DefinitionError(f"{what} must be an integer from {least} to {most}, not {value!r}")
