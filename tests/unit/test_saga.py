import dataclasses
import typing
from datetime import timedelta

import pytest
from tests.unit.saga_cases import (
    BigOrder,
    Client,
    Large,
    Opaque,
    Order,
    Payment,
    agenerator,
    big,
    book,
    cancel,
    charge,
    keyword,
    opaque,
    pay,
    plain,
    refund,
    refused,
    release,
    reserve,
    ship,
    two,
    undo_pay,
    wants_float,
    wants_int,
    wants_large,
    wants_list,
    wants_order,
    wants_sequence,
    wants_small,
    wants_union,
)

from event_workflow_engine import (
    CompensationContext,
    RetryPolicy,
    Saga,
    SagaStep,
    StepContext,
    StepResults,
    saga,
)
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.retries import COMPENSATION_RETRY, ONE_ATTEMPT
from event_workflow_engine.saga import CompensationSpec, StepSpec


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
        (lambda: SagaStep("a", book, transactional=True), "a transactional action is async.*book is not"),
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


# The package's root


def test_the_root_hides_the_module_behind_the_decorator():
    import event_workflow_engine
    import event_workflow_engine.saga as by_import
    from event_workflow_engine.saga import saga as by_from

    assert event_workflow_engine.saga is by_import is by_from is saga
