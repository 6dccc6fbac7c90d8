import dataclasses
import functools
import inspect
import shutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest

from event_workflow_engine import (
    CompensationContext,
    RetryPolicy,
    Saga,
    SagaStep,
    Signal,
    StepContext,
    StepResults,
    run_saga,
    saga,
    sleep,
    step,
    wait_for_signal,
)
from event_workflow_engine.context import RUNTIME
from event_workflow_engine.errors import DefinitionError, OutsideSagaError
from event_workflow_engine.retries import COMPENSATION_RETRY, ONE_ATTEMPT
from event_workflow_engine.saga import CompensationSpec, StepSpec


@dataclass
class Order:
    id: str


@dataclass
class BigOrder(Order):
    lines: int = 0


@dataclass
class Payment:
    id: str


if typing.TYPE_CHECKING:
    from decimal import Decimal as OutOfReach


class Opaque:
    pass


def book() -> str:
    return "flight-7"


async def cancel() -> None: ...
async def reserve(ctx: StepContext[Order]) -> str:
    return ""


async def release(ctx: CompensationContext[Order, str]) -> None: ...
def charge(ctx: StepContext[Order]) -> Payment:
    return Payment("")


def refund(ctx: CompensationContext[Order, Payment]) -> None: ...
async def ship(ctx: StepContext[Order]) -> str:
    return ""


async def big(ctx: StepContext[BigOrder]) -> str:
    return ""


async def pay(ctx: StepContext[Payment]) -> str:
    return ""


async def undo_pay(ctx: CompensationContext[Payment, typing.Any]) -> None: ...
async def plain(ctx: StepContext[typing.Any]) -> str:
    return ""


async def wants_float(ctx: StepContext[float]) -> str:
    return ""


async def wants_int(ctx: StepContext[int]) -> str:
    return ""


async def wants_union(ctx: StepContext[Order | Payment]) -> str:
    return ""


async def wants_list(ctx: StepContext[list[str]]) -> str:
    return ""


async def wants_sequence(ctx: StepContext[typing.Sequence[str]]) -> str:
    return ""


async def wants_order(order: Order) -> str:
    return ""


async def two(ctx: StepContext[Order], more: int) -> str:
    return ""


async def keyword(*, key: str) -> str:
    return ""


async def opaque() -> Opaque:
    return Opaque()


async def agenerator() -> typing.AsyncIterator[int]:
    yield 1


class Client:
    async def charge(self, ctx: StepContext[Order]) -> Payment:  # noqa: ARG002
        return Payment("")


class Small(typing.TypedDict):
    a: int


class Large(Small):
    b: int


async def wants_small(ctx: StepContext[Small]) -> None: ...
async def wants_large(ctx: StepContext[Large]) -> None: ...


# Declarative sagas


def test_steps_run_side_by_side_unless_ordered():
    made = Saga("trip", [SagaStep("flight", book, cancel), SagaStep("hotel", book)])
    assert list(made.specs) == ["flight", "hotel"]
    assert not made.ordered
    assert made.specs["flight"] == StepSpec(
        "flight",
        book,
        made.specs["flight"].info,
        compensation=CompensationSpec(cancel, made.specs["flight"].compensation.info),
    )
    assert made.specs["flight"].retry is ONE_ATTEMPT
    assert made.specs["flight"].compensation.retry is COMPENSATION_RETRY
    assert (made.fn, made.takes_input, made.output_type, made.input_type) == (None, False, StepResults, typing.Any)
    assert (made.timeout, made.settle_timeout, made.on_failure, made.on_exception) == (None, 60.0, "settle", "failed")
    assert repr(made) == "<Saga 'trip' version 1: 2 steps>"


def test_after_by_name_by_action_or_both():
    made = Saga("o", [
        SagaStep("stock", reserve), SagaStep("payment", charge), SagaStep("one", book, after="stock"),
        SagaStep("two", ship, after=(reserve, "payment", "stock")), SagaStep("three", plain, after=[charge]),
    ])  # fmt: skip
    assert {name: spec.after for name, spec in made.specs.items()} == {
        "stock": (), "payment": (), "one": ("stock",), "two": ("stock", "payment"), "three": ("payment",),
    }  # fmt: skip
    assert made.ordered
    assert made.by_action == {reserve: "stock", charge: "payment", book: "one", ship: "two", plain: "three"}


def test_after_may_name_a_later_step():
    made = Saga("o", [SagaStep("b", ship, after="a"), SagaStep("a", reserve)])
    assert made.specs["b"].after == ("a",)


def test_sequential_is_each_after_the_one_before():
    made = Saga("o", [SagaStep(name, book) for name in "abc"], sequential=True)
    assert [spec.after for spec in made.specs.values()] == [(), ("a",), ("b",)]
    assert made.ordered
    assert not Saga("o", [SagaStep("a", book)], sequential=True).ordered


def test_an_action_of_several_steps_is_referred_to_by_name_only():
    made = Saga("o", [SagaStep("a", book), SagaStep("b", book), SagaStep("c", ship, after="a")])
    assert made.by_action == {ship: "c"}
    with pytest.raises(DefinitionError, match="saga 'o': step 'c': after=book: several steps"):
        Saga("o", [SagaStep("a", book), SagaStep("b", book), SagaStep("c", ship, after=book)])


def test_actions_that_cannot_be_hashed_go_by_name():
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> int:
            return 1

    made = Saga("o", [SagaStep("a", Odd()), SagaStep("b", book, after="a")])
    assert made.by_action == {book: "b"}
    with pytest.raises(DefinitionError, match="after=Odd: no step has this action"):
        Saga("o", [SagaStep("a", Odd()), SagaStep("b", book, after=Odd())])


def test_bound_methods_refer_like_functions():
    client = Client()
    made = Saga("o", [SagaStep("a", client.charge), SagaStep("b", ship, after=client.charge)])
    assert made.specs["b"].after == ("a",)


def test_options_of_a_step_reach_its_spec():
    retry, undo_retry = RetryPolicy(attempts=3), RetryPolicy(attempts=9)
    spec = Saga("o", [SagaStep(
        "a", charge, refund, timeout=timedelta(seconds=5), retry=retry, compensation_retry=undo_retry, idempotent=False,
        compensate_failed=True, rejects=ValueError,
    )]).specs["a"]  # fmt: skip
    assert (spec.timeout, spec.retry, spec.idempotent, spec.compensate_failed) == (5.0, retry, False, True)
    assert spec.rejects == (ValueError,)
    assert spec.compensation.fn is refund
    assert spec.compensation.retry is undo_retry
    assert spec.info.takes_context
    assert not spec.info.is_async
    assert spec.info.result_type is Payment


def test_a_step_may_be_used_in_several_sagas_whatever_its_references_were_given_in():
    again = SagaStep("b", ship, after=(name for name in ["a"]), rejects=(kind for kind in [ValueError]))
    for _ in range(2):
        made = Saga("o", [SagaStep("a", reserve), again])
        assert made.specs["b"].after == ("a",)
        assert made.specs["b"].rejects == (ValueError,)
    assert dataclasses.replace(again, name="c").after == ("a",)


def test_the_first_three_fields_of_a_step_are_positional_and_the_rest_are_not():
    positional = [field.name for field in dataclasses.fields(SagaStep) if not field.kw_only]
    assert positional == ["name", "action", "compensation"]
    assert all(
        field.default is not dataclasses.MISSING for field in dataclasses.fields(SagaStep) if field.kw_only
    )  # fmt: skip
    with pytest.raises(TypeError):
        SagaStep("a", book, cancel, "x")  # type: ignore[call-overload]


def refused(text: str, *steps: SagaStep[typing.Any], **options: typing.Any) -> None:
    with pytest.raises(DefinitionError, match=text):
        Saga("o", steps, **options)


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a#1", "a~b", "a\nb", "a\x00", "\ud800", "x" * 201, None, 3])
def test_bad_step_names(name: typing.Any):
    refused("saga 'o': step name ", SagaStep(name, book))


@pytest.mark.parametrize("name", ["é ü 漢字", "a-b_c.d:e", "x" * 200])
def test_good_step_names(name: str):
    assert list(Saga("o", [SagaStep(name, book)]).specs) == [name]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, None, 3])
def test_bad_saga_names(name: typing.Any):
    with pytest.raises(DefinitionError, match="saga name"):
        Saga(name, [SagaStep("a", book)])


def test_no_steps_and_no_list_of_steps():
    refused("saga 'o': it has no steps")
    with pytest.raises(DefinitionError, match="come in a list"):
        Saga("o", SagaStep("a", book))  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="come in a list"):
        Saga("o", None)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="'book' is no SagaStep: write"):
        Saga("o", ["book"])  # type: ignore[list-item]


def test_duplicate_names():
    refused("saga 'o': two steps have the name 'a'", SagaStep("a", book), SagaStep("a", ship))


def test_unknown_references():
    refused("step 'a': after='b': there is no such step; there are 'a'", SagaStep("a", book, after="b"))
    refused("step 'a': after=ship: no step has this action", SagaStep("a", book, after=ship))
    refused("step 'a': after=3: refer to a step by its name", SagaStep("a", book, after=[3]))
    with pytest.raises(DefinitionError, match="step 'a': after=3"):
        SagaStep("a", book, after=3)  # type: ignore[arg-type]


def test_circles_are_named():
    refused("step 'a': after='a': a step cannot come after itself", SagaStep("a", book, after="a"))
    refused("in a circle: (a → c → b → a|a → b → c → a|b → a → c → b|c → b → a → c|b → c → a → b|c → a → b → c)",
            SagaStep("a", book, after="c"), SagaStep("b", book, after="a"), SagaStep("c", book, after="b"),
            SagaStep("d", book))  # fmt: skip


def test_a_circle_reads_in_the_order_of_running():
    with pytest.raises(DefinitionError) as error:
        Saga("o", [SagaStep("a", book, after="b"), SagaStep("b", book, after=("a", "c")), SagaStep("c", book)])
    assert "a → b → a" in str(error.value) or "b → a → b" in str(error.value)


def test_long_circles_and_chains_are_borne():
    steps = [SagaStep(str(n), book, after=str(n - 1) if n else ()) for n in range(5000)]
    assert Saga("o", steps).specs["4999"].after == ("4998",)
    with pytest.raises(DefinitionError, match="…") as error:
        Saga("o", [SagaStep("0", book, after="4999"), *steps[1:]])
    assert len(str(error.value)) < 300


def test_sequential_with_after_is_refused():
    refused(
        "step 'b' has after=, but sequential=True", SagaStep("a", book), SagaStep("b", ship, after="a"), sequential=True
    )


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: SagaStep("a", 3), "the action 3 cannot be called"),
        (lambda: SagaStep("a", book, 3), "the compensation 3 cannot be called"),
        (lambda: SagaStep("a", agenerator), "agenerator is a generator function"),
        (lambda: SagaStep("a", two), "two needs 2 positional arguments.*functools.partial"),
        (lambda: SagaStep("a", keyword), r"keyword needs key=…: give it by functools.partial"),
        (lambda: SagaStep("a", wants_order), "wants_order wants a Order, but .* gets a StepContext"),
        (lambda: SagaStep("a", release), "release wants a CompensationContext, but .* gets a StepContext"),
        (lambda: SagaStep("a", book, wants_order), "wants_order wants a Order, but .* gets a CompensationContext"),
        (lambda: SagaStep("a", book, two), "two needs 2 positional"),
        (lambda: SagaStep("a", opaque), "the result of opaque: Opaque cannot be read back"),
        (lambda: SagaStep("a", book, timeout=-1), "timeout=-1: above 0"),
        (lambda: SagaStep("a", book, timeout=0), "timeout=0: above 0"),
        (lambda: SagaStep("a", book, timeout=timedelta(0)), "above 0"),
        (lambda: SagaStep("a", book, timeout=float("nan")), "finite"),
        (lambda: SagaStep("a", book, timeout=float("inf")), "finite"),
        (lambda: SagaStep("a", book, timeout="5"), "timeout='5': seconds or a timedelta"),
        (lambda: SagaStep("a", book, timeout=True), "seconds or a timedelta"),
        (lambda: SagaStep("a", book, retry=3), "retry=3: a RetryPolicy"),
        (lambda: SagaStep("a", book, cancel, compensation_retry=3), "compensation_retry=3: a RetryPolicy"),
        (
            lambda: SagaStep("a", book, compensation_retry=RetryPolicy()),
            "compensation_retry is given, but no compensation",
        ),
        (lambda: SagaStep("a", book, compensate_failed=True), "compensate_failed is given, but no compensation"),
        (lambda: SagaStep("a", book, rejects=(int,)), "<class 'int'> is no exception type"),
        (lambda: SagaStep("a", book, rejects=("x",)), "'x' is no exception type"),
        (lambda: SagaStep("a", book, probe=book), "probe=.* is not available in this version"),
        (lambda: SagaStep("a", book, kind="pivot"), "kind='pivot' is not available in this version"),
        (lambda: SagaStep("a", book, kind="odd"), "kind='odd': one of 'compensatable', 'pivot', 'retriable'"),
        (lambda: SagaStep("a", book, locks="x"), "locks=.* is not available in this version"),
        (lambda: SagaStep("a", book, transactional=True), "transactional=True is not available in this version"),
    ],
)
def test_what_is_wrong_with_a_step_is_told_with_saga_and_step(made: typing.Any, text: str):
    refused(f"saga 'o', step 'a': .*{text}", made())


def test_an_action_that_was_called_by_mistake():
    coroutine = cancel()
    refused("give the function itself, uncalled", SagaStep("a", coroutine))
    coroutine.close()


def test_a_compensation_as_action_is_refused():
    refused("saga 'o', step 'a': undoes wants a CompensationContext", SagaStep("a", undoes))


async def undoes(ctx: CompensationContext) -> None: ...


class HasKey(typing.Protocol):
    idempotency_key: str


def test_a_protocol_may_be_a_context():
    async def act(ctx: HasKey) -> str:
        return ctx.idempotency_key

    async def any_object(ctx: object) -> None: ...
    async def anything(ctx: typing.Any) -> None: ...

    async def maybe(ctx: StepContext[Order] | None) -> None: ...
    async def annotated(ctx: typing.Annotated[StepContext[Order], "x"]) -> None: ...

    steps = [SagaStep("a", act, any_object), SagaStep("b", anything), SagaStep("c", maybe), SagaStep("d", annotated)]
    assert list(Saga("o", steps).specs) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"version": 0}, "version=0: a whole number from 1"),
        ({"version": "1"}, "version='1'"),
        ({"version": True}, "version=True"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": 0}, "timeout=0"),
        ({"settle_timeout": -1}, "settle_timeout=-1: not negative"),
        ({"on_failure": "stop"}, "on_failure='stop': one of 'settle', 'cancel'"),
        ({"on_exception": "x"}, "on_exception='x': one of 'failed', 'unknown'"),
    ],
)
def test_bad_options_of_a_saga(options: dict[str, typing.Any], text: str):
    refused(f"saga 'o': {text}", SagaStep("a", book), **options)
    with pytest.raises(DefinitionError, match=f"saga 'o': {text}"):

        @saga("o", **options)
        async def fn() -> None: ...


def test_good_options_of_a_saga():
    made = Saga("o", [SagaStep("a", book)], version=3, timeout=timedelta(minutes=1), settle_timeout=0,
                on_failure="cancel", on_exception="unknown")  # fmt: skip
    assert (made.version, made.timeout, made.settle_timeout) == (3, 60.0, 0.0)
    assert (made.on_failure, made.on_exception) == ("cancel", "unknown")


# The input


@pytest.mark.parametrize(
    ("actions", "given", "expected"),
    [
        ([book], None, typing.Any),
        ([reserve], None, Order),
        ([reserve, book, plain], None, Order),
        ([plain], None, typing.Any),
        ([book], Order, Order),
        ([reserve], Order, Order),
        ([reserve], BigOrder, BigOrder),
        ([reserve, big], None, BigOrder),
        ([big, reserve], None, BigOrder),
        ([wants_float, wants_int], None, int),
        ([wants_union, reserve], None, Order),
        ([wants_list, wants_sequence], None, list[str]),
        ([wants_sequence], tuple[str, ...], tuple[str, ...]),
        ([wants_small, wants_large], None, Large),
        ([wants_small], dict[str, int], None),
        ([wants_union], Order, Order),
        ([reserve], Payment, None),
        ([big], Order, None),
        ([wants_small], int, None),
    ],
)
def test_the_input_is_what_all_steps_can_take(actions: list[typing.Any], given: typing.Any, expected: typing.Any):
    steps = [SagaStep(str(n), action) for n, action in enumerate(actions)]
    if expected is None:
        refused("saga 'o': input_type is .*, but step '0' wants", *steps, input_type=given)
    else:
        assert Saga("o", steps, input_type=given).input_type == expected


def test_steps_that_disagree_are_named_both():
    text = "saga 'o': the steps want different inputs: 'b' wants Payment, 'a' wants Order"
    refused(text, SagaStep("a", reserve), SagaStep("b", pay))
    refused("'a' wants Payment, 'a' wants Order", SagaStep("a", reserve, undo_pay))


def test_an_input_that_cannot_be_read_back():
    async def act(ctx: StepContext[Opaque]) -> None: ...

    refused("saga 'o': the input: Opaque cannot be read back", SagaStep("a", act))


# Saga functions


@saga("approved", version=2, timeout=60, on_failure="cancel", on_exception="unknown", settle_timeout=5)
async def approved(order: Order) -> Payment:
    """Its text."""
    return Payment(order.id)


@saga("bare")
async def bare() -> None: ...


def test_a_function_becomes_a_saga():
    assert isinstance(approved, Saga)
    assert (approved.name, approved.version, approved.timeout, approved.settle_timeout) == ("approved", 2, 60.0, 5.0)
    assert (approved.on_failure, approved.on_exception) == ("cancel", "unknown")
    assert (approved.input_type, approved.output_type, approved.takes_input) == (Order, Payment, True)
    assert (approved.steps, dict(approved.specs), dict(approved.by_action), approved.ordered) == ((), {}, {}, False)
    assert inspect.iscoroutinefunction(approved.fn)
    assert approved.__doc__ == "Its text."
    assert repr(approved) == "<Saga 'approved' version 2: function approved>"


def test_a_function_without_input():
    assert (bare.input_type, bare.output_type, bare.takes_input) == (type(None), type(None), False)


def test_a_saga_is_not_called():
    for made in (approved, Saga("o", [SagaStep("a", book)])):
        with pytest.raises(DefinitionError, match=r"is not called: await engine.execute.*run_saga\(saga, input\)"):
            made(Order("x"))  # type: ignore[operator]


def test_unannotated_functions_take_and_give_anything():
    @saga("u")
    async def fn(x): ...  # noqa: ANN001, ANN202

    assert (fn.input_type, fn.output_type) == (typing.Any, typing.Any)


async def too_many(a: int, b: int) -> None: ...
async def default(a: int = 1) -> None: ...
def no_coroutine(a: int) -> None: ...
async def unreadable(a: Opaque) -> None: ...
async def unreadable_result() -> Order | Payment: ...


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (too_many, "too_many takes more than one parameter"),
        (keyword, "keyword takes more than one parameter"),
        (default, "default has a default"),
        (no_coroutine, "no async function: write async def no_coroutine"),
        (agenerator, "agenerator is no async function"),
        (Client().charge, "charge is no async function"),
        (functools.partial(too_many, 1), "too_many is no async function"),
        (3, "not for 3"),
        (unreadable, "the input of unreadable: Opaque"),
        (unreadable_result, "the result of unreadable_result: .*more than one"),
    ],
)
def test_functions_that_are_no_sagas(fn: typing.Any, text: str):
    with pytest.raises(DefinitionError, match=f"saga 'o': .*{text}"):
        saga("o")(fn)


def test_the_decorator_needs_a_name():
    with pytest.raises(DefinitionError, match=r'write @saga\("no_coroutine"\)'):
        saga(no_coroutine)  # type: ignore[arg-type]


# Compensations of saga functions


HERE = cancel.__module__


def test_compensations_are_found_by_name_in_the_module_and_one_level_down():
    for fn, name in ((cancel, f"{HERE}:cancel"), (shutil.rmtree, "shutil:rmtree")):
        assert approved.compensation_name(fn) == name
        assert approved.compensation_name(fn) == name
        assert approved.find_compensation(name) is fn
    assert approved.find_compensation(f"{HERE}:none") is None


def test_compensations_from_elsewhere_are_registered():
    from os.path import join

    with pytest.raises(DefinitionError, match=r"saga 'bare', compensation join: .*register_compensation\(join\)"):
        bare.compensation_name(join)
    assert bare.register_compensation(join) is join
    assert bare.find_compensation(bare.compensation_name(join)) is join


def test_what_cannot_be_found_again_is_refused():
    def closure() -> None: ...

    for fn in (lambda: 1, closure, functools.partial(cancel), Client().charge):
        with pytest.raises(DefinitionError, match="saga 'approved', compensation"):
            approved.compensation_name(fn)
        with pytest.raises(DefinitionError, match="saga 'approved'"):
            approved.register_compensation(fn)


def test_a_name_that_leads_to_another_function_is_refused():
    twin = type(cancel)(cancel.__code__, globals(), "cancel")
    twin.__qualname__ = "cancel"
    with pytest.raises(DefinitionError, match=f"{HERE}:cancel leads to another function"):
        approved.compensation_name(twin)


def test_a_decorated_function_looks_in_its_own_module():
    def decorate(fn: typing.Any) -> typing.Any:
        # A wrapper from elsewhere has the globals of its own module.
        scope: dict[str, typing.Any] = {"fn": fn}
        code = compile("async def wrapper(*args):\n    return await fn(*args)", "elsewhere", "exec")
        exec(code, scope)
        return functools.wraps(fn)(scope["wrapper"])

    @saga("d")
    @decorate
    async def fn(order: Order) -> Payment: ...  # type: ignore[empty-body]

    assert fn.compensation_name(cancel) == f"{HERE}:cancel"
    assert (fn.input_type, fn.output_type) == (Order, Payment)


def test_a_declarative_saga_knows_only_registered_ones():
    made = Saga("o", [SagaStep("a", book)])
    assert made.find_compensation(f"{HERE}:cancel") is None
    made.register_compensation(cancel)
    assert made.compensation_name(cancel) == f"{HERE}:cancel"


# The body


class Recorder:
    """A runtime that notes what it is asked for; the real one is the runner's."""

    def __init__(self) -> None:
        self.calls: list[tuple[typing.Any, ...]] = []

    async def _done(self) -> None: ...

    def step(self, fn: typing.Any, args: typing.Any, spec: typing.Any, key: str | None, /) -> typing.Any:
        self.calls.append((fn, args, spec, key))
        return self._done()

    def sleep(self, seconds: float, /) -> typing.Any:
        self.calls.append((seconds,))
        return self._done()

    def wait_for_signal(self, name: str, kind: typing.Any, timeout: float | None, /) -> typing.Any:
        self.calls.append((name, kind, timeout))
        return self._done()

    def run_saga(self, saga: typing.Any, input: typing.Any, saga_id: str | None, /) -> typing.Any:  # noqa: A002
        self.calls.append((saga, input, saga_id))
        return self._done()


@pytest.fixture
def body() -> Iterator[Recorder]:
    recorder = Recorder()
    token = RUNTIME.set(recorder)
    yield recorder
    RUNTIME.reset(token)


async def reserve_sku(sku: str, count: int = 1) -> str:
    return ""


async def test_step_is_fixed_when_it_is_called(body: Recorder):
    waiting = step(reserve_sku, "lamp")
    [(fn, args, spec, key)] = body.calls
    assert (fn, args, key) == (reserve_sku, ("lamp",), None)
    assert spec == StepSpec("reserve_sku", reserve_sku, spec.info)
    assert spec.info.result_type is str
    await waiting


async def test_options_of_step_reach_its_spec(body: Recorder):
    retry, undo_retry = RetryPolicy(attempts=3), RetryPolicy(attempts=9)
    await step(
        reserve_sku, "lamp", 2, compensation=release, name="stock", key="line-1", timeout=timedelta(seconds=5), retry=retry,
        compensation_retry=undo_retry, idempotent=False, compensate_failed=True, rejects=(ValueError,),
    )  # fmt: skip
    [(_, args, spec, key)] = body.calls
    assert (args, key, spec.name, spec.timeout, spec.retry) == (("lamp", 2), "line-1", "stock", 5.0, retry)
    assert (spec.idempotent, spec.compensate_failed, spec.rejects) == (False, True, (ValueError,))
    assert (spec.compensation.fn, spec.compensation.retry) == (release, undo_retry)
    assert spec.compensation.info.takes_context


async def test_the_default_name_is_that_of_the_function(body: Recorder):
    await step(functools.partial(reserve_sku, count=3), "lamp")
    await step(Client().charge, None)
    await step(lambda: 3)
    assert [spec.name for _, _, spec, _ in body.calls] == ["reserve_sku", "charge", "<lambda>"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: step(3), "step 'int': the action 3 cannot be called"),
        (lambda: step(reserve_sku), "reserve_sku needs 1 arguments, but step.. was given 0"),
        (lambda: step(book, name="a/b"), "step 'a/b': the name 'a/b' holds '/'"),
        (lambda: step(book, key="a#1"), "key 'a#1' holds '#'"),
        (lambda: step(book, key=""), "key ''"),
        (lambda: step(book, timeout=0), "step 'book': timeout=0"),
        (lambda: step(book, retry=3), "step 'book': retry=3"),
        (lambda: step(book, compensation=3), "step 'book': the compensation 3 cannot be called"),
        (lambda: step(book, compensation=wants_order), "wants a Order"),
        (lambda: step(book, compensation_retry=RetryPolicy()), "compensation_retry is given, but no compensation"),
        (lambda: step(book, compensate_failed=True), "compensate_failed is given, but no compensation"),
        (lambda: step(book, rejects=(3,)), "3 is no exception type"),
        (lambda: step(book, probe=book), "step 'book': probe= is not available in this version"),
        (lambda: step(opaque), "step 'opaque': the result of opaque: Opaque"),
        (lambda: step(agenerator), "generator function"),
        (lambda: step(keyword), "keyword needs key=…"),
        (lambda: step(approved), "run by run_saga"),
        (lambda: sleep("3"), r"sleep\('3'\): seconds or a timedelta"),
        (lambda: sleep(True), "seconds or a timedelta"),
        (lambda: sleep(float("nan")), "seconds or a timedelta"),
        (lambda: wait_for_signal(""), "signal name ''"),
        (lambda: wait_for_signal(3), "signal name 3"),
        (lambda: wait_for_signal("x", timeout=-1), "signal 'x': timeout=-1: not negative"),
        (lambda: run_saga("approved"), r"run_saga\('approved'\): a Saga is needed"),
    ],
)
def test_what_is_wrong_is_raised_at_the_call(body: Recorder, call: typing.Any, text: str):
    with pytest.raises(DefinitionError, match=text):
        call()
    assert body.calls == []


@pytest.mark.parametrize(
    ("delay", "length"), [(3, 3.0), (timedelta(days=2), 172800.0), (-5, 0.0), (timedelta(days=-1), 0.0), (0, 0.0)]
)
async def test_sleep(body: Recorder, delay: typing.Any, length: float):
    await sleep(delay)
    assert body.calls == [(length,)]


async def test_wait_for_signal(body: Recorder):
    await wait_for_signal(Signal("approval", Payment), timeout=timedelta(days=2))
    await wait_for_signal("go")
    await wait_for_signal("go", timeout=0)
    assert body.calls == [("approval", Payment, 172800.0), ("go", typing.Any, None), ("go", typing.Any, 0.0)]


async def test_run_saga(body: Recorder):
    await run_saga(approved, Order("x"), id="child-1")
    await run_saga(bare)
    assert body.calls == [(approved, Order("x"), "child-1"), (bare, None, None)]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: step(book), "step"),
        (lambda: sleep(1), "sleep"),
        (lambda: wait_for_signal("x"), "wait_for_signal"),
        (lambda: run_saga(bare), "run_saga"),
    ],
)
def test_outside_of_a_body(call: typing.Any, name: str):
    with pytest.raises(OutsideSagaError, match=rf"{name}\(\) was called outside"):
        call()


def test_signals_are_values():
    assert Signal("a", Payment) == Signal("a", Payment)
    assert len({Signal("a", int), Signal("a", int), Signal("a", str)}) == 2


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [("", int, "signal name ''"), ("a", Opaque, "signal 'a': Opaque"), ("a\n", int, "signal name")],
)
def test_bad_signals(name: str, kind: typing.Any, text: str):
    with pytest.raises(DefinitionError, match=text):
        Signal(name, kind)


# Annotations that only a type checker can resolve: a stored value would come back as something else after a crash


async def result_out_of_reach() -> "OutOfReach": ...
async def input_out_of_reach(ctx: "StepContext[OutOfReach]") -> str:
    return ""


async def undoes_out_of_reach(ctx: "CompensationContext[Order, OutOfReach]") -> None: ...


def test_annotations_out_of_reach_are_refused_where_they_matter(body: Recorder):
    refused(
        "saga 'o', step 'a': the annotation 'OutOfReach' in result_out_of_reach .*TYPE_CHECKING",
        SagaStep("a", result_out_of_reach),
    )
    refused("in input_out_of_reach .*or give the saga its input_type", SagaStep("a", input_out_of_reach))
    assert Saga("o", [SagaStep("a", input_out_of_reach)], input_type=Order).input_type is Order
    assert Saga("o", [SagaStep("a", input_out_of_reach), SagaStep("b", reserve)]).input_type is Order
    # In a list of steps the action says what it returns; a function's compensation stands alone.
    assert Saga("o", [SagaStep("a", reserve, undoes_out_of_reach)]).input_type is Order
    with pytest.raises(DefinitionError, match=r"step 'book': .*in undoes_out_of_reach"):
        step(book, compensation=undoes_out_of_reach)
    with pytest.raises(DefinitionError, match=r"step 'result_out_of_reach': .*in result_out_of_reach"):
        step(result_out_of_reach)
    with pytest.raises(DefinitionError, match=r"saga 'o': .*in result_out_of_reach"):
        saga("o")(result_out_of_reach)

    async def opaque_result(ctx: CompensationContext[Order, Opaque]) -> None: ...

    with pytest.raises(DefinitionError, match="the result that opaque_result undoes: Opaque"):
        step(book, compensation=opaque_result)


# The package's root


def test_the_root_hides_the_module_behind_the_decorator():
    import event_workflow_engine
    import event_workflow_engine.saga as by_import
    from event_workflow_engine.saga import saga as by_from

    assert event_workflow_engine.saga is by_import is by_from is saga
