"""What text every store can hold, and look up."""

from __future__ import annotations

from typing import Final
from zlib import crc32

from event_workflow_engine.errors import DefinitionError

__all__ = ["MAX_NAME_BYTES", "check_name", "check_text", "sql_table_prefix", "storable"]

MAX_NAME_BYTES: Final = 2000
"""The longest name of a stream or id, and key of a document, in UTF-8: with what stands beside it in an index, it fits
a row of it in every store (2,704 bytes on PostgreSQL).
"""


def check_text(value: object, what: str) -> None:
    """Check that `value` is non-empty text that every backend can store: UTF-8 without NUL.

    Raises:
        DefinitionError: It is not.
    """
    if not isinstance(value, str) or not value:
        raise DefinitionError(f"{what} must be non-empty text, not {value!r}")
    if "\0" in value:
        raise DefinitionError(f"{what} holds the character NUL, which not every store can hold: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DefinitionError(f"{what} holds a lone surrogate, which UTF-8 cannot store: {value!r}") from None


def check_name(value: object, what: str) -> None:
    """Check that `value` is text (see `check_text`) that every backend can look up: of at most `MAX_NAME_BYTES`.

    Raises:
        DefinitionError: It is not.
    """
    check_text(value, what)
    if isinstance(value, str) and len(value) * 4 > MAX_NAME_BYTES < len(value.encode()):
        raise DefinitionError(
            f"{what} is too long, {len(value.encode())} bytes where {MAX_NAME_BYTES} are the most: {value[:50]!r}…; "
            "shorten it, or use a digest of it"
        )


def storable(text: str) -> str:
    r"""`text` that somebody else wrote, as every backend can store it: NUL as ``\0``, lone surrogates as ``\udc00``."""
    return text.replace("\0", r"\0").encode(errors="backslashreplace").decode()


def sql_table_prefix(projection: str) -> str:
    """How the names of a SQL projection's tables begin; behind it come the table's own name and the generation."""
    if not projection.isalnum() or not projection.islower():
        # Names of tables know neither case nor dashes, and an underscore might be where the table's name begins.
        projection = f"{projection.replace('-', '_').lower()}_{crc32(projection.encode()):08x}"
    return f"p_{projection}_"
