"""Ids: UUID version 7, in order within a process, apart from every other process."""

import os
import sys
import threading
import uuid

from event_workflow_engine.ids import _Generator, uuid7


def test_it_is_a_uuid_of_version_7() -> None:
    for _ in range(1000):
        text = uuid7()
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert parsed.version == 7
        assert parsed.variant == uuid.RFC_4122


def test_later_ids_sort_behind_earlier_ones() -> None:
    ids = [uuid7() for _ in range(50_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_the_time_is_in_it() -> None:
    import time

    before = time.time_ns() // 1_000_000
    milliseconds = int(_Generator()().replace("-", "")[:12], 16)
    assert before <= milliseconds <= time.time_ns() // 1_000_000 + 1


def test_a_millisecond_that_is_used_up_goes_on_in_the_next() -> None:
    generate = _Generator()
    first = generate()
    moment = generate._advance(generate._moment.ms + 3_600_000)  # as if the clock stood an hour behind
    moment.counter = iter([0xFFFFFFFF, 0x100000000])  # type: ignore[assignment]
    last_of_its_millisecond, next_one = generate(), generate()
    assert first < last_of_its_millisecond < next_one
    assert uuid.UUID(next_one).version == 7


def test_a_clock_that_goes_back_does_not_turn_the_order() -> None:
    generate = _Generator()
    generate._advance(generate._moment.ms + 10_000)
    ids = [generate() for _ in range(100)]
    assert ids == sorted(ids)


def test_ids_of_several_threads_are_apart() -> None:
    found: list[list[str]] = [[] for _ in range(4)]
    start = threading.Barrier(4)
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet in the middle of making one

    def make(into: list[str]) -> None:
        start.wait()
        into.extend(uuid7() for _ in range(20_000))

    threads = [threading.Thread(target=make, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(often)
    assert len({text for into in found for text in into}) == 80_000
    assert all(into == sorted(into) for into in found), "each thread's are in order"


def test_two_generators_never_meet() -> None:
    first, second = _Generator(), _Generator()
    assert first()[-10:] != second()[-10:]


def test_a_forked_child_does_not_go_on_with_its_parents_ids() -> None:
    uuid7()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, uuid7().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = pipe.read()
    assert theirs[-10:] != uuid7()[-10:]
