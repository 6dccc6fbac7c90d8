from __future__ import annotations

from event_workflow_engine.storage.judging.caches import Cache


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.young.update(a=1, b=2, c=3)
    cache.age()
    assert cache.young == {}
    assert cache.missing(["a", "x"]) == ["x"]
    assert cache.young == {"a": 1}
    cache.young.update(d=4, e=5)
    cache.age()
    assert cache.missing(["a", "b", "c", "d"]) == ["b", "c"]


def test_it_ages_only_when_it_is_full() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.young.update(a=1, b=2)
    cache.age()
    assert cache.young == {"a": 1, "b": 2}


def test_cleared_it_knows_nothing() -> None:
    cache: Cache[str, int] = Cache(1)
    cache.young.update(a=1, b=2)
    cache.age()
    cache.young.update(c=3)
    cache.clear()
    assert cache.missing(["a", "c"]) == ["a", "c"]
