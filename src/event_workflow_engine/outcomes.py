"""What a step's end means: done, did not happen, or nobody knows. Rule 1 of the saga rules."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from event_workflow_engine.errors import OutcomeUnknownError, SagaEvicted, StepRejectedError

__all__ = ["TRANSPORT_ERRORS", "Outcome", "RollbackReport", "classify", "qualified_name"]


class Outcome(enum.StrEnum):
    """The three values of a step's end."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class RollbackReport(msgspec.Struct, frozen=True):
    """What a rollback did, by step name.

    Attributes:
        compensated: Steps whose compensation succeeded, in the order in which they ran.
        skipped: Steps without a compensation, or that an operator skipped.
        failed: Steps whose compensation failed for good, with the error's text.
    """

    compensated: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: dict[str, str] = {}


TRANSPORT_ERRORS: Final[set[str]] = {
    "httpx.TransportError",
    "httpcore.NetworkError",
    "httpcore.TimeoutException",
    "httpcore.ProtocolError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "requests.exceptions.ChunkedEncodingError",
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "urllib3.exceptions.TimeoutError",
    "urllib3.exceptions.ProtocolError",
    "urllib3.exceptions.HTTPError",
    "urllib.error.URLError",
    "ssl.SSLError",
    "http.client.RemoteDisconnected",
    "http.client.IncompleteRead",
    "asyncpg.exceptions.PostgresConnectionError",
    "asyncpg.exceptions.ConnectionDoesNotExistError",
    "asyncpg.exceptions._base.InterfaceError",
    "psycopg.OperationalError",
    "psycopg.errors.OperationalError",
    "psycopg.InterfaceError",
    "psycopg2.OperationalError",
    "sqlalchemy.exc.DisconnectionError",
    "sqlalchemy.exc.OperationalError",
    "sqlalchemy.exc.InterfaceError",
    "sqlalchemy.exc.TimeoutError",
    "redis.exceptions.ConnectionError",
    "redis.exceptions.TimeoutError",
    "grpc.RpcError",
    "grpc.aio._call.AioRpcError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.ConnectionClosedError",
    "botocore.exceptions.EndpointConnectionError",
    "botocore.exceptions.ReadTimeoutError",
}
"""Qualified names of exception classes that speak of the transport, not of the effect. Add your client's to it.

A name is looked for in the whole MRO of what was raised, so that base classes serve for all that derive from them, and
nothing needs to be imported. ``urllib.error.HTTPError`` is an answer of the server, hence not unknown.
"""

_ANSWERS: Final = frozenset({"urllib.error.HTTPError"})


def qualified_name(kind: type) -> str:
    """``module.QualName`` of a class; the bare name for built-ins."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def classify(error: BaseException, *, strict: bool = False, rejects: tuple[type[BaseException], ...] = ()) -> Outcome:
    """Whether an action that raised `error` is taken as FAILED or as UNKNOWN.

    Args:
        error: What the action raised.
        strict: ``Saga(on_exception="unknown")``: only `StepRejectedError` and `rejects` say that it did not happen.
        rejects: Types that say so in any mode.

    Example:
        >>> classify(ValueError("no such sku")), classify(ConnectionResetError())
        (<Outcome.FAILED: 'failed'>, <Outcome.UNKNOWN: 'unknown'>)
    """
    if isinstance(error, (StepRejectedError, *rejects)):
        return Outcome.FAILED
    if isinstance(error, BaseExceptionGroup):
        # Of an action's own TaskGroup: where one of its calls may have landed, the action may have.
        parts = [classify(part, strict=strict, rejects=rejects) for part in error.exceptions]
        return Outcome.UNKNOWN if Outcome.UNKNOWN in parts else Outcome.FAILED
    if strict or isinstance(error, (OutcomeUnknownError, TimeoutError, ConnectionError, SagaEvicted)):
        return Outcome.UNKNOWN
    if not isinstance(error, Exception):  # KeyboardInterrupt, CancelledError and the like, in the middle of the effect
        return Outcome.UNKNOWN
    names = [qualified_name(kind) for kind in type(error).__mro__]
    if not _ANSWERS.isdisjoint(names):
        return Outcome.FAILED
    return Outcome.FAILED if TRANSPORT_ERRORS.isdisjoint(names) else Outcome.UNKNOWN
