"""A real PgBouncer before a server under test, which shares its connections by the transaction."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from event_workflow_engine.testing.postgres import PostgresServer

BINARY = "EWE_TEST_PGBOUNCER"
NOBODY = 65534
SHARED = 3
"""Connections to the server, fewer than one worker has to the pooler: who does not bear sharing meets others' state."""

CONFIG = """\
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {shared}
max_client_conn = 200
server_round_robin = 1
"""


class PgBouncer:
    """One pooler. It refuses to be root's, so for root it is nobody's."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._port = 0

    def __enter__(self) -> Self:
        parts = urlsplit(self._server.url())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="ewe-pgbouncer-"))
        self._folder.chmod(0o755)
        (self._folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
        (self._folder / "config").write_text(
            CONFIG.format(host=parts.hostname, server_port=parts.port, port=self._port, folder=self._folder,
                          shared=SHARED)
        )  # fmt: skip
        return self

    async def start(self) -> None:
        """Start it, again after `kill`, and wait until it takes connections."""
        process = self._process = self._run()
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                assert process.poll() is None, (self._folder / "log").read_text()
            else:
                writer.close()
                return

    def _run(self) -> subprocess.Popen[bytes]:
        binary = os.environ.get(BINARY) or "pgbouncer"
        other: dict[str, Any] = {}
        if os.geteuid() == 0:
            other = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen([binary, str(self._folder / "config")], stdout=log, stderr=log, **other)

    def url(self, database: str = "postgres") -> str:
        """The server's URL by way of the pooler."""
        return self._server.url(database).replace(f":{self._server.port}/", f":{self._port}/")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __exit__(self, *exc: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
