"""Cells: several stores, each with an engine of its own, behind a router; one of them is killed and comes back.

    .venv/bin/python examples/cells.py

A tenant lives in one cell, which its name tells by a stable hash. A cell is a process with a SQLite file and an API on
a socket: it runs a saga by its id, and the same id is the same saga. An order is a saga in its buyer's cell; one of its
steps has the seller's cell run a sale, with the step's idempotency key as the sale's id. The exit code is 1 when an
order or a sale is missing, or there twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from event_workflow_engine import EventStore, RetryPolicy, Saga, SagaStep, StepContext, WorkflowEngine
from event_workflow_engine.storage import open_storage

CELLS = (0, 1, 2)
VICTIM = 1
SLOTS = 64
DIRECTORY = {slot: CELLS[slot % len(CELLS)] for slot in range(SLOTS)}
TENANTS = [f"tenant-{n:02}" for n in range(24)]
ORDERS_EACH = 4
LIMIT_S = 20


@dataclass(frozen=True)
class Order:
    """Who buys from whom."""

    id: str
    buyer: str
    seller: str


ORDERS = [
    Order(f"order-{buyer}-{n}", name, TENANTS[(buyer + 7 * n + 1) % len(TENANTS)])
    for buyer, name in enumerate(TENANTS)
    for n in range(ORDERS_EACH)
]


# -- the router ----------------------------------------------------------------------------------------------------


def number(name: str) -> int:
    """The same in every process and every release, which Python's own `hash` is not."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def cell_of(tenant: str) -> int:
    """Where a tenant lives: its slot never changes, and the directory says which cell has the slot."""
    return DIRECTORY[number(tenant) % SLOTS]


async def call(folder: Path, cell: int, saga: str, saga_id: str, order: Order) -> Any:
    """Have a cell run a saga; calling again with the same id joins it, or tells its result again.

    Raises:
        ConnectionError: No answer came, so nobody knows what became of it.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(folder / f"{cell}.sock")
    except OSError as error:
        raise ConnectionError(f"cell {cell} does not answer") from error
    try:
        writer.write(json.dumps([saga, saga_id, asdict(order)]).encode() + b"\n")
        answer = await reader.readline()
    finally:
        writer.close()
    if not answer:
        raise ConnectionError(f"cell {cell} broke off")
    return json.loads(answer)


# -- a cell --------------------------------------------------------------------------------------------------------


async def work(name: str) -> None:
    """What a step does in the world takes its time."""
    await asyncio.sleep(0.01 + number(name) % 100 / 1000)


def sagas(folder: Path) -> tuple[Saga[Order, Any], Saga[Order, Any]]:
    async def charge(ctx: StepContext[Order]) -> str:
        await work(ctx.idempotency_key)
        return f"{ctx.input.buyer} has paid"

    async def sell(ctx: StepContext[Order]) -> str:
        answer = await call(folder, cell_of(ctx.input.seller), "sale", ctx.idempotency_key, ctx.input)
        return str(answer["pack"])

    async def pack(ctx: StepContext[Order]) -> str:
        await work(ctx.idempotency_key)
        return f"{ctx.input.seller} has packed {ctx.input.id}"

    # A cell that is away is no failure: the step asks again until it has an answer.
    asks = RetryPolicy(attempts=None, delay=0.05, max_delay=0.2)
    steps = [SagaStep("charge", charge), SagaStep("sell", sell, retry=asks)]
    order = Saga("order", steps, sequential=True, input_type=Order)
    return order, Saga("sale", [SagaStep("pack", pack)], input_type=Order)


async def run_cell(folder: Path, cell: int) -> None:
    """Serve until SIGTERM."""
    logging.disable(logging.WARNING)  # that a worker is gone is the point of this program
    order, sale = sagas(folder)
    engine = WorkflowEngine(f"sqlite:///{folder}/{cell}.db")
    engine.register(order, sale)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked := await reader.readline():  # else the caller was killed before it could ask
            name, saga_id, given = json.loads(asked)
            results = await engine.execute({"order": order, "sale": sale}[name], Order(**given), id=saga_id)
            writer.write(json.dumps(dict(results)).encode() + b"\n")
        writer.close()

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with engine:
        server = await asyncio.start_unix_server(serve, folder / f"{cell}.sock")
        print("ready", flush=True)
        await ended.wait()
        server.close()


# -- the simulation ------------------------------------------------------------------------------------------------


async def start_cell(folder: Path, cell: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "cell", str(folder), str(cell), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    if not await process.stdout.readline():
        raise RuntimeError(f"cell {cell} did not start")
    return process


async def place(folder: Path, order: Order) -> None:
    """A client: asks until it has an answer, and may do so as often as it likes."""
    while True:
        try:
            await call(folder, cell_of(order.buyer), "order", order.id, order)
        except ConnectionError:
            await asyncio.sleep(0.05)
        else:
            return


async def simulate(folder: Path) -> int:
    """Place all orders, kill a cell among them; how many orders that do not need it ended while it was away."""
    processes = dict(zip(CELLS, await asyncio.gather(*(start_cell(folder, cell) for cell in CELLS)), strict=True))
    try:
        clients = {order: asyncio.create_task(place(folder, order)) for order in ORDERS}
        at_victim = [clients[order] for order in ORDERS if cell_of(order.buyer) == VICTIM]
        await asyncio.wait(at_victim, return_when=asyncio.FIRST_COMPLETED)
        processes[VICTIM].kill()
        await processes[VICTIM].wait()
        others = [clients[order] for order in ORDERS if VICTIM not in (cell_of(order.buyer), cell_of(order.seller))]
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*others)
        if all(client.done() for client in at_victim):
            raise RuntimeError("the kill cut nothing off")
        processes[VICTIM] = await start_cell(folder, VICTIM)
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*clients.values())
    finally:
        for process in processes.values():
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(process.wait() for process in processes.values()))
    return len(others)


async def look(folder: Path, cell: int) -> tuple[list[tuple[str, str]], int]:
    """From one cell's log: the sagas that have completed, and how many steps were cut off and ran again."""
    names: dict[str, str] = {}
    completed, again = [], 0
    async with open_storage(f"sqlite:///{folder}/{cell}.db") as storage:
        async for event in EventStore(storage).read_all(types=("saga-started", "saga-completed", "step-started")):
            if event.type == "saga-started":
                names[event.stream] = event.data.saga
            elif event.type == "saga-completed":
                completed.append((names[event.stream], event.stream.removeprefix("saga-")))
            else:
                again += event.data.interruptions > 0
    return completed, again


async def main() -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        others = await simulate(folder)
        found = {cell: await look(folder, cell) for cell in CELLS}
    ended = Counter(saga for completed, _ in found.values() for saga in completed)
    wanted = {("order", order.id) for order in ORDERS} | {("sale", f"{order.id}:1:sell") for order in ORDERS}
    at_home = sum(cell_of(order.buyer) == cell_of(order.seller) for order in ORDERS)
    for cell, (completed, _) in found.items():
        by_name = Counter(saga for saga, _ in completed)
        tenants = sum(cell_of(tenant) == cell for tenant in TENANTS)
        print(f"cell {cell}: {tenants} tenants, {by_name['order']} orders, {by_name['sale']} sales")
    print(f"{len(ORDERS)} orders, {len(ORDERS) - at_home} of them over two cells")
    print(f"cell {VICTIM} was killed; meanwhile all {others} orders that do not need it ended")
    print(f"steps of it that were cut off and ran again: {found[VICTIM][1]}")
    missing, twice = wanted - set(ended), [saga for saga in ended if ended[saga] > 1]
    print(f"missing: {len(missing)}, twice: {len(twice)}, unasked for: {len(set(ended) - wanted)}")
    return set(ended) == wanted and not twice


if __name__ == "__main__":
    if sys.argv[1:2] == ["cell"]:
        asyncio.run(run_cell(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        sys.exit(not asyncio.run(main()))
