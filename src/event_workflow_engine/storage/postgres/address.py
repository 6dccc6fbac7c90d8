"""Where a store is: what its URL says, and how connections to it are made."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg
import msgspec

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage.postgres.errors import connecting_error

__all__ = ["Address"]

_SCHEMA: Final = re.compile(r"(?!pg_|information_schema\Z)[a-z_][a-z0-9_]{0,40}\Z")
_HOST: Final = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?\Z")
_NUMBER: Final = re.compile(r"[0-9]{1,5}\Z")
_PORT_MAX: Final = 65535
_LOGIN: Final = re.compile(r"(?<=://)([^:@/]*):[^/]+@")
_PASSWORD: Final = re.compile(r"(?<=[?&])([^=&]*(?:pass(?!file=)|pasw|pwd)[^=&]*)=[^&]*", re.IGNORECASE)
_LISTEN: Final = re.compile(r"(?<=[?&]listen=)[^&]*")
_CONNECT_S: Final = 10.0
_SCHEME: Final = re.compile(r"postgres(?:ql)?(?:\+[a-z0-9]+)?://")
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
        compiled: Whether the server may compile statements as it is set to. Else it is told not to: by its estimates
            some are costly, and compiling them takes longer than they do. It is told nothing where the URL speaks of
            ``jit``, nor where a pooler is between (``listen``), whose other clients would get the setting, too.
    """

    dsn: str
    shown: str
    schema: str = "ewe"
    listen_dsn: str | None = None
    pool: int = 8
    prepared: bool = True
    compiled: bool = False

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
        dsn = _dsn(parts)
        # Before anything is shown: one that is malformed may be a password to any part.
        listen = _listen_dsn(url, ours["listen"]) if "listen" in ours else dsn
        shown = _without_passwords(url)
        _check_ports(parts, shown)
        schema = ours.get("schema", "ewe")
        if not _SCHEMA.match(schema):
            raise DefinitionError(
                f"{shown}: schema={schema!r} is not allowed: up to 41 lower-case letters, digits and _, "
                "no digit and no pg_ first"
            )
        pool = ours.get("pool", "8")
        if not _NUMBER.match(pool) or not 1 <= int(pool) <= 1000:  # noqa: PLR2004 - more is a slip of the pen
            raise DefinitionError(f"{shown}: pool={pool!r} must be a number of connections from 1 to 1000")
        prepared = ours.get("prepared", "on")
        if prepared not in ("on", "off"):
            raise DefinitionError(f"{shown}: prepared={prepared!r} must be on or off")
        compiled = "listen" in ours or "jit" in dict(query)
        return cls(dsn, shown, schema, listen, int(pool), prepared == "on", compiled)

    @property
    def transactions(self) -> int:
        """How many transactional steps run at once at most.

        One less than `pool`, so that a pooler with as many connections for each process has one for all else:
        heartbeats must not wait for what users' code does.
        """
        return max(1, self.pool - 1)

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
            DefinitionError: The driver or the server does not take what the URL says.
            StorageError: There is none to be had; typed by why.
        """
        try:
            connection = await asyncpg.connect(**(self.options() | ({"dsn": dsn} if dsn else {})))
            try:
                await self.prepare(connection)
            except BaseException:
                connection.terminate()
                raise
        except Exception as error:
            raise connecting_error(error, self.shown) from error
        return connection

    async def prepare(self, connection: asyncpg.Connection[Any]) -> None:
        """Make the settings of a new connection."""
        if not self.compiled:
            await connection.execute("SET jit = off", timeout=_CONNECT_S)


def _split(url: str, where: str = "the PostgreSQL URL") -> SplitResult:
    """The parts of a URL.

    Raises:
        DefinitionError: It is malformed. Nothing of it is told: where its parts cannot be told apart, none is safe.
    """
    malformed = DefinitionError(
        f"{where} cannot be read: it is postgresql://user:password@host:port/database?option=value, and in "
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


def _dsn(parts: SplitResult) -> str:
    query = parse_qsl(parts.query, keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in query if name not in _OURS])
    return urlunsplit(("postgresql", parts.netloc, parts.path, rest, ""))


def _listen_dsn(url: str, listen: str) -> str | None:
    """Where to listen, as the option of `url` says; ``None`` for nowhere.

    Raises:
        DefinitionError: It says neither ``off`` nor a URL. It is not told then: what in it is a password is not known.
    """
    if listen == "off":
        return None
    where = f"{_without_passwords(_LISTEN.sub('…', url))}: listen="
    if not _SCHEME.match(listen):
        raise DefinitionError(
            f"{where} must be off, or the URL of the same server past its pooler: postgresql://user:password@host:port/"
            "database, in which & is written %26"
        )
    parts = _split(listen, where)
    _check_ports(parts, where)
    return _dsn(parts)


def _check_ports(parts: SplitResult, where: str) -> None:
    """Check the ports of a URL, which the driver does not.

    Raises:
        DefinitionError: One is none.
    """
    options = dict(parse_qsl(parts.query))
    places = parts.netloc.rpartition("@")[2].split(",")
    places += [host for host in options.get("host", "").split(",") if not host.startswith("/")]
    ports = [match[1] for match in map(_HOST.match, places) if match and match[1]]
    for port in ports + (options["port"].split(",") if "port" in options else []):
        if not _NUMBER.match(port) or not 1 <= int(port) <= _PORT_MAX:
            raise DefinitionError(f"{where}: {port!r} is no port: one is a number from 1 to {_PORT_MAX}")


def _without_passwords(url: str) -> str:
    url, question, query = url.partition("?")
    query = _PASSWORD.sub(r"\1=***", question + query)
    query = _LISTEN.sub(lambda match: _without_passwords(unquote(match[0])), query)
    return _LOGIN.sub(r"\1:***@", url) + query
