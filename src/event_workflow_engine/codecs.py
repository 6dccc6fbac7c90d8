"""Values to JSON and back, typed. Never pickle, never a type imported by a stored name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from event_workflow_engine.errors import DecodeError, EncodeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEEPEST", "JSON", "LARGEST", "Codec", "JsonCodec", "Raw", "digest"]

LARGEST: Final = 64 * 2**20
"""Bytes of JSON in one payload. A store takes a value of 1 GB at most, and many of a saga are written as one."""

DEEPEST: Final = 500
"""Levels of lists and objects in one payload. JSON is read by recursion, which ends at about 1,000 calls within calls,
those of the program included: so what is written on a short stack could not be read on a longer one."""

Raw = msgspec.Raw
"""JSON that was encoded before and is carried as it is."""


class Codec(Protocol):
    """How payloads become bytes. Its bytes must be JSON, since they are carried inside of JSON records."""

    def encode(self, value: Any, what: str) -> bytes:
        """`value` as JSON.

        Args:
            value: A dataclass, Struct, TypedDict, Pydantic model, or what JSON knows.
            what: Whose value it is, for the error's text.

        Raises:
            EncodeError: It holds something that JSON cannot; names the type and the field.
        """
        ...

    def decode(self, data: bytes | Raw, type: Any, what: str) -> Any:  # noqa: A002 - the term of the field
        """`data` as a value of `type` (``Any``: dicts, lists and scalars).

        Raises:
            DecodeError: It is no JSON, or does not fit the type.
        """
        ...


def _pydantic_model(kind: Any) -> bool:
    return hasattr(kind, "model_validate_json") and hasattr(kind, "model_fields")


def _encode_foreign(value: Any) -> Any:
    if _pydantic_model(type(value)):
        # By alias, since that is what validation wants; without what is computed, since validation may refuse it.
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is no type that JSON knows")


def _decode_foreign(kind: type, value: Any) -> Any:
    if _pydantic_model(kind):
        # As JSON, so that a strict model takes dates and the like as the text they are in JSON.
        return kind.model_validate_json(msgspec.json.encode(value))  # type: ignore[attr-defined]
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} is no type that JSON can be decoded to")


class JsonCodec:
    """JSON by msgspec, with Pydantic models recognised without importing Pydantic.

    JSON has no NaN and no infinity: a float that is one of them is an `EncodeError`, instead of a null that later fits
    no float. So is what has more than 64 MiB, which would be refused by a store when it is too late, and what has more
    than 500 levels of lists and objects, which could not be read everywhere.
    """

    __slots__ = ("_decoders", "_encode")

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder(enc_hook=_encode_foreign).encode
        self._decoders: dict[Any, Callable[[bytes | Raw], Any]] = {}

    def encode(self, value: Any, what: str) -> bytes:
        """See `Codec.encode`."""
        try:
            data = self._encode(value)
            if b"null" in data and value is not None:
                _refuse_not_finite(value)
        except Exception as error:
            # Whatever a model's own hook raises, the caller learns where the value could not be written.
            raise _encode_error(value, what, error) from error
        if len(data) > LARGEST:
            raise EncodeError(
                f"{what}: {len(data):,} bytes of JSON, and a payload may have {LARGEST:,}: "
                "keep it elsewhere, a file or an object store, and put its name into the payload"
            )
        if len(data) > 2 * DEEPEST and _is_too_deep(data):
            raise EncodeError(
                f"{what}: its JSON has more than {DEEPEST} levels of lists and objects, one within the other, and "
                "could not be read everywhere: write it flat, such as a list of nodes that name their parents"
            )
        return data

    def decode(self, data: bytes | Raw, type: Any, what: str) -> Any:  # noqa: A002 - the term of the field
        """See `Codec.decode`."""
        try:
            return self.decoder(type)(data)
        except Exception as error:
            raise DecodeError(f"{what}: its JSON does not fit {_shown(type)}: {error}") from error

    def decoder(self, kind: Any) -> Callable[[bytes | Raw], Any]:
        """What decodes `kind`, made once; for who decodes much and names its errors itself, since it raises any."""
        try:
            return self._decoders[kind]
        except TypeError:  # an unhashable annotation, e.g. Annotated with a dict
            return msgspec.json.Decoder(kind, dec_hook=_decode_foreign).decode
        except KeyError:
            decode = self._decoders[kind] = msgspec.json.Decoder(kind, dec_hook=_decode_foreign).decode
            return decode


JSON: Final = JsonCodec()
"""The codec that the library itself uses."""


_AS_LISTS: Final = bytes.maketrans(b"{}", b"[]")
_NEITHER_BRACKETS_NOR_QUOTES: Final = bytes(set(range(256)) - set(b'[]{}"'))


def _is_too_deep(data: bytes) -> bool:
    """Whether JSON has more levels than `DEEPEST`. A loop over its bytes would cost many times what writing it did."""
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return False
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Strings without brackets are gone with the first replacing, and what the others hold with every other part.
    parts = data.translate(_AS_LISTS, _NEITHER_BRACKETS_NOR_QUOTES).replace(b'""', b"").split(b'"')
    brackets = b"".join(parts[::2])
    levels = 0
    while levels + len(brackets) // 2 > DEEPEST:
        if levels == DEEPEST:
            return True
        brackets = brackets.replace(b"[]", b"")  # the innermost level
        levels += 1
    return False


_deterministic: Final = msgspec.json.Encoder(enc_hook=_encode_foreign, order="deterministic")
_finite: Final = json.JSONEncoder(allow_nan=False, check_circular=False)
_WALKED: Final = 50


def digest(value: Any, what: str) -> str:
    """A hash of a value's JSON, the same in every process: in whatever order its sets and dicts are.

    Args:
        value: As in `Codec.encode`.
        what: Whose value it is, for the error's text.

    Raises:
        EncodeError: It holds something that JSON cannot.

    Example:
        >>> digest({"a": 1, "b": 2}, "") == digest({"b": 2, "a": 1}, "")
        True
    """
    try:
        data = _deterministic.encode(value)
    except Exception as error:
        raise _encode_error(value, what, error) from error
    return hashlib.sha256(data).hexdigest()


def _refuse_not_finite(value: Any) -> None:
    # What msgspec wrote as null may have been NaN or infinite; json is the one that refuses to write those.
    _finite.encode(msgspec.to_builtins(value, enc_hook=_without_raw, str_keys=True))


def _without_raw(value: Any) -> Any:
    return None if isinstance(value, Raw) else _encode_foreign(value)


def _try_encode(value: Any) -> None:
    if b"null" in _deterministic.encode(value) and value is not None:
        _refuse_not_finite(value)


def _encode_error(value: Any, what: str, error: Exception) -> EncodeError:
    path, culprit = _find_culprit(value, "")
    return EncodeError(
        f"{what}: {culprit} at {path or 'the top'} cannot be written as JSON ({error}); "
        "use a dataclass, Struct, TypedDict, Pydantic model, or plain dicts, lists and scalars"
    )


def _shown(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


def _find_culprit(value: Any, path: str, depth: int = 0) -> tuple[str, str]:
    """Walk to the innermost part that cannot be encoded. Only runs on the way to an error."""
    for name, part in _parts(value) if depth < _WALKED else ():
        try:
            _try_encode(part)
        except Exception:  # noqa: BLE001 - a model's hook may raise anything; each means: it is in here
            return _find_culprit(part, f"{path}.{name}" if path else name, depth + 1)
    return path, f"{type(value).__module__}.{type(value).__qualname__}"


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(str(n), part) for n, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    if isinstance(value, msgspec.Struct):
        return [(name, getattr(value, name, None)) for name in value.__struct_fields__]
    return []
