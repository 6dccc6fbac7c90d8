"""Where a store is: what its URL says, and how connections to it are made."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg
import msgspec

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.postgres.errors import storage_error

__all__ = ["Address"]

_SCHEMA: Final = re.compile(r"(?!pg_|information_schema\Z)[a-z_][a-z0-9_]{0,40}\Z")
_HOST: Final = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::\d*)?\Z")
_LOGIN: Final = re.compile(r"(?<=://)([^:@/]*):[^/]+@")
_PASSWORD: Final = re.compile(r"(?<=[?&])((?:ssl)?password)=[^&]*")
_LISTEN: Final = re.compile(r"(?<=[?&]listen=)[^&]*")
_CONNECT_S: Final = 10.0
_OURS: Final = ("schema", "listen", "pool", "prepared")


class Address(msgspec.Struct, frozen=True):
    """A store in a database.

    Attributes:
        dsn: For connections, without our own options.
        shown: The URL as it may be shown: without the password.
        schema: The PostgreSQL schema of the store's tables.
        listen_dsn: For the connection that is notified; ``None`` where nobody is to listen.
        pool: How many connections read at most.
        prepared: Whether statements may be prepared and kept by the connection.
    """

    dsn: str
    shown: str
    schema: str = "ewe"
    listen_dsn: str | None = None
    pool: int = 8
    prepared: bool = True

    @classmethod
    def of(cls, url: str) -> Address:
        """What a URL says: ``postgresql://user:password@host:port/database?schema=ewe``.

        Options: ``schema``; ``pool``, the number of reading connections (8); ``listen``, the URL of a connection that
        a pooler does not share, or ``off`` to look by polling; ``prepared=off`` for poolers that forget statements.
        All others are PostgreSQL's own (``sslmode``, ``application_name`` …).

        Raises:
            DefinitionError: Something in it is malformed.
        """
        parts = _split(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
        ours = {name: value for name, value in query if name in _OURS}
        rest = urlencode([(name, value) for name, value in query if name not in _OURS])
        dsn = urlunsplit(("postgresql", parts.netloc, parts.path, rest, ""))
        shown = _without_passwords(url)
        schema = ours.get("schema", "ewe")
        if not _SCHEMA.match(schema):
            raise DefinitionError(
                f"{shown}: schema={schema!r} is not allowed: up to 41 lower-case letters, digits and _, "
                "no digit and no pg_ first"
            )
        pool = ours.get("pool", "8")
        if not pool.isdigit() or not 1 <= int(pool) <= 1000:  # noqa: PLR2004 - more is a slip of the pen
            raise DefinitionError(f"{shown}: pool={pool!r} must be a number of connections from 1 to 1000")
        prepared = ours.get("prepared", "on")
        if prepared not in ("on", "off"):
            raise DefinitionError(f"{shown}: prepared={prepared!r} must be on or off")
        listen = ours.get("listen", dsn)
        return cls(dsn, shown, schema, None if listen == "off" else listen, int(pool), prepared == "on")

    @property
    def channel(self) -> str:
        """The notification channel."""
        return f"ewe_{self.schema}"

    def options(self) -> dict[str, Any]:
        """How to connect."""
        options: dict[str, Any] = {"dsn": self.dsn, "timeout": _CONNECT_S, "max_cached_statement_lifetime": 0}
        if not self.prepared:
            options["statement_cache_size"] = 0
        return options

    async def connect(self, dsn: str | None = None) -> asyncpg.Connection[Any]:
        """A new connection.

        Raises:
            StorageError: There is none to be had; typed by why.
        """
        try:
            return await asyncpg.connect(**(self.options() | ({"dsn": dsn} if dsn else {})))
        except Exception as error:
            raise storage_error(error, self.shown) from error


def _split(url: str) -> SplitResult:
    """The parts of a URL.

    Raises:
        DefinitionError: It is malformed. Nothing of it is told: where its parts cannot be told apart, none is safe.
    """
    malformed = DefinitionError(
        "the PostgreSQL URL cannot be read: it is postgresql://user:password@host:port/database?option=value, and in "
        "user, password and database the characters / ? # @ : % are written %2F %3F %23 %40 %3A %25"
    )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise malformed from None
    hosts = parts.netloc.rpartition("@")[2].split(",")
    options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if not all(map(_HOST.match, hosts)) or parts.fragment or "@" in "".join((parts.path, *options)):
        raise malformed
    return parts


def _without_passwords(url: str) -> str:
    url, question, query = url.partition("?")
    query = _PASSWORD.sub(r"\1=***", question + query)
    query = _LISTEN.sub(lambda match: _without_passwords(unquote(match[0])), query)
    return _LOGIN.sub(r"\1:***@", url) + query
