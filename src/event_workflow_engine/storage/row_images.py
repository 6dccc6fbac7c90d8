"""What a compare-and-set does to one row, for every backend that decides it in Python.

An *image* is a row as a tuple of its column values in declared order, or ``None`` where no row has the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from event_workflow_engine.errors import DefinitionError, RowConflictError
from event_workflow_engine.storage.names import MAX_NAME_BYTES
from event_workflow_engine.storage.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from event_workflow_engine.storage.port import Row
    from event_workflow_engine.storage.tables import Table

__all__ = ["SHAPES", "Image", "Key", "Shape", "shape_of"]

Image = tuple[Any, ...]
Key = tuple[Any, ...]

_TYPES: Final[dict[str, type]] = {"text": str, "integer": int, "blob": bytes, "real": float}
_MAX_KEY_CHARACTERS: Final = MAX_NAME_BYTES // 4
_MAX_KEY_BYTES: Final = MAX_NAME_BYTES + 50  # the engine's own keys may hold a name and a few characters before it
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


class Shape:
    """A declared table, prepared for applying row operations.

    Attributes:
        name: The table's name.
        columns: Its columns in order, the key's first.
        width: How many columns the key has.
    """

    __slots__ = ("_fields", "_index", "_key_types", "_nulls", "_types", "columns", "name", "width")

    def __init__(self, table: Table) -> None:
        self.name = table.name
        self.columns = tuple(table.columns)
        self.width = len(table.key)
        if self.columns[: self.width] != table.key:
            raise DefinitionError(f"table {table.name!r}: the key's columns must be declared first, in the key's order")
        self._index = {column: place for place, column in enumerate(self.columns)}
        self._types = tuple(_TYPES[kind] for kind in table.columns.values())
        self._key_types = self._types[: self.width]
        self._nulls = (None,) * (len(self.columns) - self.width)
        self._fields: dict[tuple[str, ...], tuple[tuple[int, type], ...]] = {}

    def key(self, key: Key) -> Key:
        """`key` with values as the store keeps them.

        Raises:
            DefinitionError: It does not fit the table's key.
        """
        if tuple(map(type, key)) == self._key_types:
            if self.width == 1 and type(key[0]) is str and len(key[0]) < _MAX_KEY_CHARACTERS and key[0].isprintable():
                return key
        elif len(key) != self.width:
            raise DefinitionError(f"the key of table {self.name!r} has {self.width} columns, not {len(key)}: {key!r}")
        if None in key:
            raise DefinitionError(f"the key {key!r} of table {self.name!r} has a None in it")
        return tuple(map(self._of_key, range(self.width), key))

    def apply(self, image: Image | None, row: Row) -> Image | None:
        """The image that `row` leaves, or the same `image` where it changes nothing.

        Args:
            image: The row as it is.
            row: The operation.

        Raises:
            RowConflictError: The row is not as expected.
            DefinitionError: An unknown operation or column, or a value that does not fit its column.
        """
        op = row.op
        if op in ("check", "update", "delete"):
            if image is None:
                wanted = f"a row with {dict(row.where)!r}" if row.where else "a row"
                raise RowConflictError(self.name, row.key, wanted)
            self._require(image, row)
            if op == "update":
                return self._with(image, row.values)
            return image if op == "check" else None
        if op not in ("insert", "upsert"):
            raise DefinitionError(f"table {self.name!r}: {op!r} is no operation on a row")
        if image is None:
            return self._with((*self.key(row.key), *self._nulls), row.values)
        if op == "insert":
            raise RowConflictError(self.name, row.key, "no such row")
        self._require(image, row)
        return self._with(image, row.values)

    def overwrites(self, row: Row) -> bool:
        """Whether `row` leaves the same image whatever was there before."""
        return row.op == "upsert" and not row.where and len(row.values) == len(self._nulls)

    def as_dict(self, image: Image) -> dict[str, Any]:
        """`image` by column."""
        return dict(zip(self.columns, image, strict=True))

    def place(self, column: str) -> int:
        """Where `column` stands in an image.

        Raises:
            DefinitionError: The table has no such column.
        """
        try:
            return self._index[column]
        except KeyError:
            raise DefinitionError(f"table {self.name!r} has no column {column!r}") from None

    def _require(self, image: Image, row: Row) -> None:
        index = self._index
        for column, value in row.where.items():
            try:
                actual = image[index[column]]
            except KeyError:
                actual = image[self.place(column)]  # which says what is wrong
            # A NULL equals nothing but None, as in SQL's IS.
            if actual != value:
                raise RowConflictError(self.name, row.key, f"{column} = {value!r}, it is {actual!r}")

    def _with(self, image: Image, values: Mapping[str, Any]) -> Image:
        new = list(image)
        columns = tuple(values)
        fields = self._fields.get(columns)
        if fields is None:
            fields = self._set_of(columns)
        for (place, wanted), value in zip(fields, values.values(), strict=True):
            kind: type = value.__class__
            # Most values are stored as they are; the rest is for `_stored` to say.
            if value is None or (
                kind is wanted
                and (value.isascii() if kind is str else kind is int and _INT64_MIN <= value <= _INT64_MAX)
            ):
                new[place] = value
            else:
                new[place] = self._stored(place, value)
        return tuple(new)

    def _set_of(self, columns: tuple[str, ...]) -> tuple[tuple[int, type], ...]:
        """Places and types of columns that an operation sets; kept, for there are few such sets."""
        places = [self.place(column) for column in columns]
        for place in places:
            if place < self.width:
                raise DefinitionError(
                    f"table {self.name!r}: {columns[places.index(place)]!r} is of the key and cannot be set"
                )
        fields = self._fields[columns] = tuple((place, self._types[place]) for place in places)
        return fields

    def _of_key(self, place: int, value: Any) -> Any:
        """`value` as the column of the key keeps it: what every backend can look up."""
        stored = self._stored(place, value)
        if isinstance(stored, str):
            if "\0" in stored:
                raise DefinitionError(f"table {self.name!r}: a key holds the character NUL: {stored[:50]!r}")
            if len(stored) > _MAX_KEY_CHARACTERS and len(stored.encode()) > _MAX_KEY_BYTES:
                raise DefinitionError(
                    f"table {self.name!r}: a key is too long, {len(stored.encode())} bytes where {_MAX_KEY_BYTES} are "
                    f"the most: {stored[:50]!r}…; shorten it, or use a digest of it"
                )
        return stored

    def _stored(self, place: int, value: Any) -> Any:
        """`value` as the column keeps it: a `StrEnum` as text, a flag as a number."""
        if value is None:
            return None
        wanted = self._types[place]
        if wanted is str:
            if isinstance(value, str) and (value.isascii() or _is_utf8(value)):
                return value if type(value) is str else str.__str__(value)
        elif wanted is int:
            if isinstance(value, int) and _INT64_MIN <= value <= _INT64_MAX:
                return int(value)
        elif isinstance(value, wanted):
            return value
        raise DefinitionError(
            f"table {self.name!r}: {value!r} does not fit column {self.columns[place]!r} ({wanted.__name__})"
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


SHAPES: Final[dict[str, Shape]] = {name: Shape(table) for name, table in TABLES.items()}
"""The declared tables' shapes, by name."""


def shape_of(table: str) -> Shape:
    """The shape of a declared table.

    Raises:
        DefinitionError: No table of that name is declared.
    """
    shape = SHAPES.get(table)
    if shape is None:
        raise DefinitionError(f"no table {table!r} is declared")
    return shape
