"""What PostgreSQL and its driver raise, in this library's words: which database, what happened, what to do."""

from __future__ import annotations

import ssl
from typing import Final, TypeAlias, TypeGuard

import asyncpg

from event_workflow_engine.errors import (
    DefinitionError,
    SchemaVersionError,
    StorageCorruptError,
    StorageError,
    StorageLostError,
    StorageUnavailableError,
    WorkflowError,
)

__all__ = ["DRIVER_ERRORS", "connecting_error", "is_lost", "is_lost_connection", "storage_error"]

_Meaning: TypeAlias = tuple[tuple[type[BaseException], ...], type[WorkflowError], str]

DRIVER_ERRORS: Final = (
    asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError,
)  # fmt: skip
"""What working over a connection may raise. The third where the server has ended the session, but not yet closed it."""

_POOLER_GAVE_UP: Final = "query_wait_timeout"
"""What PgBouncer says to who has waited too long for a connection, as it cuts it off."""

_NO_ANSWER: Final = (
    "no answer in time: check that the server runs, and host and port of the URL; if a pooler is before it, give that "
    "more connections to the server, or lower pool="
)

_AT_CONNECTING: Final[tuple[_Meaning, ...]] = (
    (
        (ssl.SSLError,),  # one of a certificate is a ValueError, too
        StorageUnavailableError,
        "the connection cannot be encrypted as asked: check sslmode and sslrootcert of the URL, and the certificate",
    ),
    (
        (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError, asyncpg.CantChangeRuntimeParamError),
        DefinitionError,
        "correct the URL: an option that is not schema, listen, pool or prepared is a setting of PostgreSQL",
    ),
    (
        (ValueError, OverflowError),  # the driver's, before it connects
        DefinitionError,
        "correct the URL, or the variables PG… of the environment",
    ),
    (
        (asyncpg.ObjectNotInPrerequisiteStateError,),
        StorageUnavailableError,
        "let it take them again with ALTER DATABASE … ALLOW_CONNECTIONS true, or name another in the URL",
    ),
)

_MEANINGS: Final[tuple[_Meaning, ...]] = (
    (
        (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError),
        StorageUnavailableError,
        "check the user and password of the URL, and pg_hba.conf",
    ),
    (
        (asyncpg.InvalidCatalogNameError,),
        StorageUnavailableError,
        "there is no such database: create it, or correct the URL",
    ),
    (
        (asyncpg.InsufficientPrivilegeError,),
        StorageUnavailableError,
        "the role lacks a right: let it own the schema, or GRANT it USAGE on the schema and all rights within",
    ),
    (
        (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError),
        SchemaVersionError,
        "the schema is missing or incomplete: run `ewe db upgrade`, or open it with auto_upgrade=True",
    ),
    (
        (asyncpg.DuplicateTableError, asyncpg.DuplicateFunctionError, asyncpg.UndefinedColumnError),
        SchemaVersionError,
        "the schema holds something else than this library's tables: name another with schema=",
    ),
    (
        (asyncpg.TooManyConnectionsError,),
        StorageUnavailableError,
        "the server has no connection left: raise max_connections, lower pool=, or put a pooler before it",
    ),
    (
        # The latter is what a standby says of a transaction that wants to write.
        (asyncpg.ReadOnlySQLTransactionError, asyncpg.FeatureNotSupportedError),
        StorageUnavailableError,
        "the server takes no writes, as a standby does: connect to the primary (target_session_attrs=read-write)",
    ),
    (
        (asyncpg.TargetServerAttributeNotMatched,),
        StorageUnavailableError,
        "none of the URL's servers is such a one now: check that one is the primary, and target_session_attrs",
    ),
    (
        (asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError),
        StorageUnavailableError,
        "the server is starting or stopping: try again",
    ),
    (
        (asyncpg.DiskFullError,),
        StorageUnavailableError,
        "the server's disk is full: free space, then try again; what was acknowledged is safe",
    ),
    (
        (asyncpg.OutOfMemoryError, asyncpg.InsufficientResourcesError),
        StorageUnavailableError,
        "the server is short of resources: look at its log, then try again",
    ),
    (
        (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError),
        StorageUnavailableError,
        "another transaction was in the way: end those that hang, then try again",
    ),
    (
        (asyncpg.QueryCanceledError,),
        StorageUnavailableError,
        "the statement was cancelled: raise statement_timeout for this role, or look why it took so long",
    ),
    (
        (asyncpg.IdleInTransactionSessionTimeoutError,),
        StorageUnavailableError,
        "the transaction stood still for too long and was ended: make the work in it shorter",
    ),
    (
        (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError),
        StorageUnavailableError,
        "a pooler forgets prepared statements: add prepared=off to the URL, or let PgBouncer 1.21 or newer keep them",
    ),
    (
        (asyncpg.UntranslatableCharacterError, asyncpg.CharacterNotInRepertoireError),
        DefinitionError,
        "PostgreSQL's text cannot hold the character NUL",
    ),
    (
        (asyncpg.ProgramLimitExceededError,),
        DefinitionError,
        "a stream's name, an id or a key is too long for PostgreSQL's indexes: keep it under 2,000 bytes",
    ),
    (
        (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError),
        StorageCorruptError,
        "the database is damaged: stop all workers and restore a backup",
    ),
    (
        (TimeoutError,),
        StorageUnavailableError,
        _NO_ANSWER,
    ),
    (
        (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError),
        StorageUnavailableError,
        "the server is out of reach: check that it runs, and host and port of the URL",
    ),
)


def connecting_error(error: BaseException, where: str) -> WorkflowError:
    """The typed error for what was raised while connecting to the store at `where`."""
    return _typed(error, where, _AT_CONNECTING + _MEANINGS)


def storage_error(error: BaseException, where: str) -> WorkflowError:
    """The typed error for what was raised while working on the store at `where`. Ours pass as they are."""
    if isinstance(error, WorkflowError):
        return error
    return _typed(error, where, _MEANINGS)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error leaves it open what became of the statement under way: its connection is gone, or hangs."""
    if isinstance(error, asyncpg.PostgresError):
        # The server said so itself: what was open is undone. But for one that said it as it died.
        dying = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)
        return isinstance(error, dying) and not isinstance(error, asyncpg.QueryCanceledError)
    # Also that there is no primary, while a standby takes over.
    return isinstance(error, (*DRIVER_ERRORS, EOFError))


def is_lost(verdict: object) -> TypeGuard[StorageUnavailableError]:
    """Whether a verdict is ours for a connection that was lost, maybe alone."""
    if not isinstance(verdict, StorageUnavailableError) or isinstance(verdict, StorageLostError):
        return False
    return verdict.__cause__ is not None and is_lost_connection(verdict.__cause__)


def _typed(error: BaseException, where: str, meanings: tuple[_Meaning, ...]) -> WorkflowError:
    text = str(error).strip() or type(error).__name__
    if _POOLER_GAVE_UP in text and is_lost_connection(error):
        return _chained(StorageUnavailableError(f"{where}: {text} ({type(error).__name__}): {_NO_ANSWER}"), error)
    for kinds, kind, remedy in meanings:
        if isinstance(error, kinds):
            return _chained(kind(f"{where}: {text} ({type(error).__name__}): {remedy}"), error)
    return _chained(StorageError(f"{where}: {text} ({type(error).__name__})"), error)


def _chained(new: WorkflowError, cause: BaseException) -> WorkflowError:
    new.__cause__ = cause
    return new
