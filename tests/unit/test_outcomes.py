"""Rule 1: what an exception says about the effect of the action that raised it."""

import asyncio
import urllib.error
from email.message import Message
from http.client import IncompleteRead, RemoteDisconnected

import httpx
import pytest

from event_workflow_engine.errors import OutcomeUnknownError, SagaEvicted, StepRejectedError
from event_workflow_engine.outcomes import TRANSPORT_ERRORS, Outcome, RollbackReport, classify, qualified_name


def foreign(name: str, *bases: type[BaseException]) -> type[BaseException]:
    """A class as a library that is not installed here would define it."""
    module, _, own = name.rpartition(".")
    return type(own, bases or (Exception,), {"__module__": module})


# What the clients raise, with the chain of bases by which it is recognised.
RAISED_BY_CLIENTS = [
    ("requests.exceptions.ReadTimeout", "requests.exceptions.Timeout"),
    ("requests.exceptions.SSLError", "requests.exceptions.ConnectionError"),
    ("aiohttp.client_exceptions.ServerDisconnectedError", "aiohttp.client_exceptions.ClientConnectionError"),
    ("aiohttp.client_exceptions.ClientPayloadError", None),
    ("urllib3.exceptions.ReadTimeoutError", "urllib3.exceptions.TimeoutError"),
    ("urllib3.exceptions.MaxRetryError", "urllib3.exceptions.HTTPError"),
    ("asyncpg.exceptions.ConnectionDoesNotExistError", "asyncpg.exceptions.PostgresConnectionError"),
    ("asyncpg.exceptions._base.InterfaceError", None),
    ("psycopg.OperationalError", None),
    ("psycopg.errors.ConnectionTimeout", "psycopg.OperationalError"),
    ("sqlalchemy.exc.OperationalError", None),
    ("sqlalchemy.exc.TimeoutError", None),
    ("redis.exceptions.BusyLoadingError", "redis.exceptions.ConnectionError"),
    ("redis.exceptions.TimeoutError", None),
    ("grpc.aio._call.AioRpcError", "grpc.RpcError"),
    ("botocore.exceptions.ReadTimeoutError", "botocore.exceptions.HTTPClientError"),
    ("botocore.exceptions.EndpointConnectionError", "botocore.exceptions.ConnectionError"),
]


@pytest.mark.parametrize(("name", "base"), RAISED_BY_CLIENTS, ids=[name for name, _ in RAISED_BY_CLIENTS])
def test_rule_01_an_exception_of_the_transport_is_unknown(name: str, base: str | None) -> None:
    kind = foreign(name, foreign(base)) if base else foreign(name)
    assert classify(kind("cut")) is Outcome.UNKNOWN


@pytest.mark.parametrize("name", sorted(TRANSPORT_ERRORS))
def test_rule_01_each_name_of_the_table_counts_for_what_derives_from_it(name: str) -> None:
    mine = type("Mine", (foreign(name),), {})
    assert classify(mine("cut")) is Outcome.UNKNOWN


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        TimeoutError("asyncio's and socket's are the same"),
        ConnectionResetError(),
        BrokenPipeError(),
        OutcomeUnknownError("the gateway did not answer"),
        SagaEvicted(),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(1),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.ConnectError("refused"),
        urllib.error.URLError("no route"),
        RemoteDisconnected(),
        IncompleteRead(b""),
    ],
    ids=lambda error: qualified_name(type(error)),
)
def test_rule_01_an_end_that_does_not_speak_of_the_effect_is_unknown(error: BaseException) -> None:
    assert classify(error) is Outcome.UNKNOWN


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such sku"),
        RuntimeError(),
        OSError("disk full"),
        StepRejectedError("declined"),
        urllib.error.HTTPError("http://x", 422, "no", Message(), None),
        httpx.HTTPStatusError("422", request=httpx.Request("GET", "http://x"), response=httpx.Response(422)),
        foreign("shop.errors.TimeoutError")("ours, by name alone"),
    ],
    ids=lambda error: qualified_name(type(error)),
)
def test_rule_01_an_action_that_raised_has_failed(error: Exception) -> None:
    assert classify(error) is Outcome.FAILED


def test_rule_01_strict_mode_believes_only_rejections() -> None:
    assert classify(ValueError(), strict=True) is Outcome.UNKNOWN
    assert classify(StepRejectedError(), strict=True) is Outcome.FAILED
    assert classify(KeyError(), strict=True, rejects=(LookupError,)) is Outcome.FAILED


def test_rule_01_what_the_user_says_goes_before_the_table() -> None:
    assert classify(ConnectionRefusedError(), rejects=(ConnectionRefusedError,)) is Outcome.FAILED


def test_rule_01_users_extend_the_table() -> None:
    lost = foreign("acme.client.LineDropped")
    assert classify(lost()) is Outcome.FAILED
    TRANSPORT_ERRORS.add("acme.client.LineDropped")
    try:
        assert classify(lost()) is Outcome.UNKNOWN
    finally:
        TRANSPORT_ERRORS.discard("acme.client.LineDropped")


def test_rule_01_a_group_is_unknown_where_one_of_its_parts_is() -> None:
    refused = ExceptionGroup("g", [ValueError(), ExceptionGroup("inner", [KeyError()])])
    assert classify(refused) is Outcome.FAILED
    assert classify(ExceptionGroup("g", [ValueError(), httpx.ReadTimeout("slow")])) is Outcome.UNKNOWN
    assert classify(ExceptionGroup("g", [ExceptionGroup("inner", [TimeoutError()])])) is Outcome.UNKNOWN
    assert classify(ExceptionGroup("g", [StepRejectedError(), ValueError()]), strict=True) is Outcome.UNKNOWN
    assert classify(ExceptionGroup("g", [StepRejectedError()]), strict=True) is Outcome.FAILED


def test_names_are_qualified_but_for_builtins() -> None:
    assert qualified_name(ValueError) == "ValueError"
    assert qualified_name(RollbackReport) == "event_workflow_engine.outcomes.RollbackReport"


def test_an_outcome_is_its_text() -> None:
    assert [Outcome(text) for text in ("succeeded", "failed", "unknown")] == list(Outcome)
