"""Roles, databases and schemas of a test's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PASSWORD = "s3cret-word"


class Server:
    """The server under test, as its superuser sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[str] = []

    async def run(self, sql: str, database: str = "") -> Any:
        connection = await asyncpg.connect(self.at(database=database) if database else self.url)
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()

    def at(self, *, user: str = "", database: str = "", port: int = 0, **options: str) -> str:
        """Its URL, with another user, database or port, and options."""
        parts = urlsplit(self.url)
        login = f"{user}:{PASSWORD}" if user else parts.netloc.rpartition("@")[0]
        place = f"{parts.hostname}:{port or parts.port}"
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return urlunsplit((parts.scheme, f"{login}@{place}", f"/{database or parts.path[1:]}", query, ""))

    async def role(self, *options: str) -> str:
        """A new role that may log in, and no more."""
        name = f"r_{uuid4().hex[:12]}"
        await self.run(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' {' '.join(options)}")
        return name

    async def database(self, *options: str) -> str:
        """A new empty database."""
        name = f"d_{uuid4().hex[:12]}"
        await self.run(f"CREATE DATABASE {name} {' '.join(options)}")
        self._made.append(name)
        return name


@asynccontextmanager
async def server_at(url: str) -> AsyncIterator[Server]:
    server = Server(url)
    try:
        yield server
    finally:
        for name in server._made:
            await server.run(f"DROP DATABASE {name} WITH (FORCE)")
