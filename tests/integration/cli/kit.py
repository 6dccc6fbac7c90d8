"""Running the command line in this process, and worker processes beside it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.integration.cli.worker import Counted, bad, good, waiting

from event_workflow_engine import EngineConfig, SagaFailedError, WorkflowEngine
from event_workflow_engine.cli.main import execute

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import pytest

ROOT = Path(__file__).parents[3]


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Ewe:
    """`ewe` on one store."""

    def __init__(self, url: str, capture: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capture = capture

    def __call__(self, *arguments: str) -> Ended:
        self._capture.readouterr()
        code = execute([*arguments, "--url", self.url])
        return Ended(code, *self._capture.readouterr())

    def json(self, *arguments: str) -> Any:
        return self(*arguments, "--json").document

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "event_workflow_engine.cli.main", *arguments, "--url", self.url]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def fill(self) -> None:
        """Three sagas that ended well, one that was undone, one that waits for a worker; and a user's stream."""

        async def work(engine: WorkflowEngine) -> None:
            engine.register(good, bad)
            for name in ("g-1", "g-2", "g-3"):
                await engine.execute(good, name, id=name)
            try:
                await engine.execute(bad, "boat", id="b-1")
            except SagaFailedError:
                await engine.store.append("count-a", [Counted("a"), Counted("a"), Counted("b")])

        self.engine(work)
        self.start("w-1")

    def start(self, saga_id: str) -> None:
        async def work(engine: WorkflowEngine) -> None:
            engine.register(waiting)
            await engine.start(waiting, "room", id=saga_id)

        self.engine(work, worker=False)

    def engine(self, work: Callable[[WorkflowEngine], Awaitable[None]], *, worker: bool = True) -> None:
        async def main() -> None:
            async with WorkflowEngine(self.url, config=EngineConfig(worker=worker)) as engine:
                await work(engine)

        asyncio.run(main())

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "tests.integration.cli.worker", self.url]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()
