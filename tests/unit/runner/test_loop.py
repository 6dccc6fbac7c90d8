"""The deterministic loop: asyncio inside of it behaves as asyncio does, the same in every run, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_workflow_engine.errors import ForeignAwaitError, NonDeterminismError, SagaEvicted
from event_workflow_engine.runner.loop import SagaLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

# -- a runner that is only a table of futures ------------------------------------------------------------------------


class Player:
    """Plays the runner: steps wait in a table until they are delivered, in whichever order the test wants."""

    def __init__(self, body: Callable[[Player], Coroutine[Any, Any, Any]]) -> None:
        self.loop = SagaLoop()
        self.waiting: dict[str, asyncio.Future[str]] = {}
        self.trace: list[str] = []
        self._names: dict[str, int] = {}
        self.loop.start(body(self), context=contextvars.copy_context())
        self.loop.pump()

    def step(self, name: str) -> Coroutine[Any, Any, str]:
        base = f"{'' if self.loop.present is None else self.loop.present.path}/{name}"
        self._names[base] = self._names.get(base, 0) + 1
        return self._step(f"{base}#{self._names[base]}")

    async def _step(self, identity: str) -> str:
        self.trace.append(f"start {identity}")
        self.waiting[identity] = self.loop.create_future()
        result = await self.waiting[identity]
        self.trace.append(f"got {identity}")
        return result

    def deliver(self, identity: str) -> None:
        future = self.waiting.pop(identity)
        if not future.done():
            future.set_result(identity)
        self.loop.pump()

    @property
    def ended(self) -> str | None:
        root = self.loop.root
        if not root.done():
            return None
        if root.cancelled():
            return "cancelled"
        error = root.exception()
        return f"raised {type(error).__name__}" if error is not None else f"returned {root.result()!r}"


# -- random programs -------------------------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.tuples(st.just("step"), st.sampled_from("abc")),
    st.tuples(st.just("turn")),
    st.tuples(st.just("raise")),
    st.tuples(st.just("queue"), st.sampled_from("abc")),
    st.tuples(st.just("event"), st.sampled_from("abc")),
)
PROGRAMS = st.recursive(
    st.lists(LEAVES, max_size=3),
    lambda inner: st.lists(
        st.one_of(
            LEAVES,
            st.tuples(
                st.sampled_from(["gather", "group", "first", "completed", "cancel"]),
                st.lists(inner, min_size=1, max_size=3),
            ),
            st.tuples(st.just("try"), inner),
        ),
        max_size=4,
    ),
    max_leaves=12,
)


class BoomError(Exception):
    pass


async def run(player: Any, program: list[Any]) -> list[Any]:
    return [await OPERATIONS[operation](player, *arguments) for operation, *arguments in program]


async def do_step(player: Any, name: str) -> str:
    return str(await player.step(name))


async def do_turn(_: Any) -> None:
    await asyncio.sleep(0)


async def do_raise(_: Any) -> None:
    raise BoomError


async def do_gather(player: Any, programs: list[Any]) -> Any:
    return await asyncio.gather(*(run(player, program) for program in programs))


async def do_group(player: Any, programs: list[Any]) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(player, program)) for program in programs]
    return [task.result() for task in tasks]


async def do_first(player: Any, programs: list[Any]) -> Any:
    tasks = [asyncio.create_task(run(player, program)) for program in programs]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # In the order of the set, on purpose.
    return [repr(task.exception() or task.result()) for task in done], len(pending)


async def do_completed(player: Any, programs: list[Any]) -> Any:
    return [await one for one in asyncio.as_completed([run(player, program) for program in programs])]


async def do_cancel(player: Any, programs: list[Any]) -> Any:
    tasks = [asyncio.create_task(run(player, program)) for program in programs]
    await asyncio.sleep(0)
    tasks[0].cancel()
    return [type(end).__name__ for end in await asyncio.gather(*tasks, return_exceptions=True)]


async def do_try(player: Any, program: list[Any]) -> Any:
    try:
        return await run(player, program)
    except (BoomError, BaseExceptionGroup) as error:
        return f"caught {type(error).__name__}, {await player.step('after')}"


async def do_queue(player: Any, name: str) -> Any:
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1)

    async def produce() -> None:
        for _ in range(3):
            await queue.put(await player.step(name))

    producer = asyncio.create_task(produce())
    got = [await queue.get() for _ in range(3)]
    await producer
    return got


async def do_event(player: Any, name: str) -> Any:
    event = asyncio.Event()

    async def set_it() -> None:
        await player.step(name)
        event.set()

    setter = asyncio.create_task(set_it())
    await event.wait()
    await setter


OPERATIONS: dict[str, Any] = {
    "step": do_step,
    "turn": do_turn,
    "raise": do_raise,
    "gather": do_gather,
    "group": do_group,
    "first": do_first,
    "completed": do_completed,
    "cancel": do_cancel,
    "try": do_try,
    "queue": do_queue,
    "event": do_event,
}


def play(program: list[Any], choices: list[int]) -> tuple[Player, list[str], list[int]]:
    """Deliver as the choices say, until nothing waits; the deliveries, and the trace's length at each."""
    player = Player(lambda player: run(player, program))
    deliveries, lengths = list[str](), [len(player.trace)]
    while player.waiting and player.ended is None:
        waiting = list(player.waiting)
        choice = choices[len(deliveries) % len(choices)] if choices else 0
        deliveries.append(waiting[choice % len(waiting)])
        player.deliver(deliveries[-1])
        lengths.append(len(player.trace))
    return player, deliveries, lengths


@given(PROGRAMS, st.lists(st.integers(0, 7), max_size=8))
def test_a_replay_from_any_crash_gives_the_same_trace(program: list[Any], choices: list[int]) -> None:
    whole, deliveries, lengths = play(program, choices)
    assert whole.ended is not None
    assert whole.loop.fatal is None
    for crash in range(len(deliveries) + 1):
        again = Player(lambda player: run(player, program))
        for identity in deliveries[:crash]:
            again.deliver(identity)
        assert again.trace == whole.trace[: lengths[crash]]
        for identity in deliveries[crash:]:
            again.deliver(identity)
        assert (again.trace, again.ended) == (whole.trace, whole.ended)
        again.loop.evict()
    whole.loop.evict()


class Ordinary:
    """The same program on the ordinary loop, told in the same order."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, asyncio.Future[str]]] = []

    async def step(self, name: str) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting.append((name, future))
        return await future


def shape(ended: str | None) -> str | None:
    return None if ended is None else ended.split()[0] + (ended.split()[1] if ended.startswith("raised") else "")


@given(PROGRAMS)
def test_what_becomes_of_a_program_is_what_becomes_of_it_on_asyncio(program: list[Any]) -> None:
    """Delivered first come, first served, in both."""
    player, _, _ = play(program, [])

    async def ordinary() -> str:
        other = Ordinary()
        task = asyncio.ensure_future(run(other, program))
        while True:
            for _ in range(200):
                await asyncio.sleep(0)
            if task.done():
                break
            _, future = other.waiting.pop(0)
            if not future.done():
                future.set_result("x")
        if task.cancelled():
            return "cancelled"
        error = task.exception()
        return "returned" if error is None else f"raised{type(error).__name__}"

    assert asyncio.run(ordinary()) == shape(player.ended)
    player.loop.evict()


def test_a_coroutine_that_as_completed_is_given_twice_is_run_once() -> None:
    async def body(player: Player) -> Any:
        twice = player.step("a")
        return [await one for one in asyncio.as_completed([twice, twice, player.step("b")])]

    player = Player(body)
    for identity in list(player.waiting):
        player.deliver(identity)
    assert player.ended == "returned ['/a#1', '/b#1']"


def test_replays_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "import sys; sys.path.insert(0, '.'); from tests.unit.runner.test_loop import play\n"
        "tasks = [[('step', c)] for c in 'abcabc']\n"
        "player, _, _ = play([('first', tasks), ('completed', tasks), ('group', tasks)], [5, 3, 1, 4, 2, 0])\n"
        "print(player.trace, player.ended)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(runs) == 1


# -- what is foreign -------------------------------------------------------------------------------------------------


async def wait_for_ordinary(ordinary: asyncio.Future[None]) -> None:
    await ordinary


async def under_timeout() -> None:
    async with asyncio.timeout(1):
        await asyncio.Event().wait()


FOREIGN: dict[str, Callable[[asyncio.Future[None]], Coroutine[Any, Any, Any]]] = {
    "sleep": lambda _: asyncio.sleep(1),
    "timeout": lambda _: under_timeout(),
    "wait_for": lambda _: asyncio.wait_for(asyncio.get_running_loop().create_future(), 1),
    "to_thread": lambda _: asyncio.to_thread(print),
    "connection": lambda _: asyncio.open_connection("127.0.0.1", 1),
    "subprocess": lambda _: asyncio.create_subprocess_exec("true"),
    "another loop's future": wait_for_ordinary,
}


@pytest.mark.parametrize("what", FOREIGN)
async def test_a_foreign_await_is_refused_with_the_remedy(what: str) -> None:
    ordinary: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def body(_: Player) -> str:
        try:
            await FOREIGN[what](ordinary)
        except ForeignAwaitError as error:
            return str(error)
        return "not refused"

    player = Player(body)
    assert player.ended is not None
    assert "make it a step" in player.ended
    assert isinstance(player.loop.fatal, ForeignAwaitError), "noted, though the body swallowed it"
    player.loop.evict()


def test_a_body_that_spins_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("event_workflow_engine.runner.loop._LONGEST_PUMP", 1000)

    async def body(_: Player) -> None:
        while True:  # noqa: ASYNC110 - it spins, on purpose
            await asyncio.sleep(0)

    player = Player(body)
    assert isinstance(player.loop.fatal, NonDeterminismError)
    player.loop.evict()


# -- living inside of another loop -----------------------------------------------------------------------------------


async def test_the_ordinary_loop_is_undisturbed() -> None:
    outer, task = asyncio.get_running_loop(), asyncio.current_task()
    seen: list[object] = []

    async def body(player: Player) -> None:
        seen.append(asyncio.get_running_loop() is player.loop)
        seen.append(asyncio.current_task() is player.loop.root)
        await player.step("a")
        raise BoomError

    player = Player(body)
    assert (asyncio.get_running_loop(), asyncio.current_task()) == (outer, task)
    player.deliver("/a#1")
    assert (asyncio.get_running_loop(), asyncio.current_task()) == (outer, task)
    assert seen == [True, True]
    assert player.ended == "raised BoomError"


# -- leaving memory --------------------------------------------------------------------------------------------------


def test_eviction_ends_every_task_and_runs_their_finally_blocks() -> None:
    log: list[str] = []

    async def child(player: Player, name: str) -> None:
        try:
            await player.step(name)
        finally:
            log.append(f"{name} ends")

    async def body(player: Player) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child(player, "a"))
                group.create_task(child(player, "b"))
        except Exception:
            log.append("taken for a failure")
        except SagaEvicted:
            log.append("evicted")
            raise
        finally:
            await asyncio.Event().wait()
            log.append("never")

    player = Player(body)
    player.loop.evict()
    player.loop.evict()
    assert sorted(log) == ["a ends", "b ends", "evicted"]


def test_a_body_that_will_not_end_is_closed() -> None:
    async def body(_: Player) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except SagaEvicted:
                continue

    Player(body).loop.evict()


@pytest.mark.filterwarnings("error")
def test_eviction_leaves_nothing_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    async def child(player: Player) -> None:
        await player.step("x")
        raise BoomError

    async def body(player: Player) -> None:
        lost = asyncio.create_task(child(player))
        never_run = asyncio.create_task(child(player))
        await asyncio.gather(lost, never_run, asyncio.shield(asyncio.Event().wait()))

    for delivered in (False, True):
        player = Player(body)
        if delivered:
            player.deliver("1/x#1")
        player.loop.evict()
        del player
        gc.collect()
    assert complaints == []
