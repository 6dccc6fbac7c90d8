"""`ewe demo`: plays, and shows the timeline and the ledger in 80 columns."""

import asyncio
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from event_workflow_engine.cli.demo.orders import ORDERS, sums
from event_workflow_engine.cli.demo.play import DemoError, Outcome, play
from event_workflow_engine.cli.output import cell, console, print_json, state_cell, table
from event_workflow_engine.cli.timeline import detail_of
from event_workflow_engine.history import SagaFailed, StepFailed

__all__ = ["check", "demo"]

_COLOURS: Final = {order.id: colour for order, colour in zip(ORDERS, ("cyan", "magenta"), strict=True)}
_COLUMNS: Final = 80
_MARKS: Final = {
    "step-succeeded": ("✓", "green"),
    "step-failed": ("✗", "red"),
    "saga-failed": ("✗", "red"),
    "saga-completed": ("✓", "bold green"),
    "saga-compensated": ("↶", "bold yellow"),
    "rollback-planned": ("↶", "yellow"),
    "compensation-started": ("↶", "yellow"),
    "compensation-succeeded": ("↶", "yellow"),
}


def demo(
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    keep: Annotated[bool, Parameter(name="--keep", negative="")] = False,
) -> None:
    """Fulfil two orders on a fresh SQLite file, kill the worker in the middle, and show how both end.

    Args:
        as_json: One JSON document instead of the picture.
        keep: Keep the folder with the store and the ledger, to look at with the other commands.
    """
    with ExitStack() as stack:
        # Python 3.11 has no TemporaryDirectory(delete=False).
        temporary = tempfile.mkdtemp(prefix="ewe-demo-")
        if not keep:
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        outcome = asyncio.run(play(Path(temporary), _quiet if as_json else _say))
        if as_json:
            print_json(outcome.as_plain())
        else:
            _show(outcome)
    check(outcome)
    if keep and not as_json:
        console().print(cell(f"kept: EWE_URL={outcome.url} ewe run list"), soft_wrap=True)


def check(outcome: Outcome) -> None:
    """Raise where anything is not as promised, so that the exit code says it too.

    Raises:
        DemoError: What is not.
    """
    faults = outcome.faults()
    if faults:
        raise DemoError("; ".join(faults))


def _quiet(_: str) -> None:
    """Say nothing: the document alone goes to standard output."""


def _say(line: str) -> None:
    console().print(Text.assemble(("· ", "dim"), line))
    sys.stdout.flush()


def _show(outcome: Outcome) -> None:
    out = console(_COLUMNS)
    out.print()
    out.print(Rule("What the log says", style="dim"))
    _timeline(outcome)
    out.print()
    out.print(Rule("What the world saw: stock, bank and carrier", style="dim"))
    out.print(_ledger(outcome))
    out.print()
    out.print(_ends(outcome))


def _timeline(outcome: Outcome) -> None:
    out = console(_COLUMNS)
    began = outcome.events[0].recorded_at.timestamp()
    struck = False
    for event in outcome.events:
        if not struck and event.position > outcome.kill.after_position:
            struck = True
            out.print(Rule(Text(f"✗ SIGKILL: worker {outcome.kill.pid} is gone", style="bold red"), style="red"))
            taken = f"worker {outcome.second_pid} reads the log and goes on where it ends"
            out.print(Text(taken, style="green"), justify="center")
        order = event.stream.removeprefix("saga-")
        mark, style = _MARKS.get(event.type, ("·", ""))
        detail = detail_of(event.data)
        if isinstance(event.data, StepFailed | SagaFailed):  # in 80 columns the error's class has no room
            detail = ": ".join(filter(None, (getattr(event.data, "step", ""), event.data.message)))
        line = Text.assemble(
            (f"{event.recorded_at.timestamp() - began:6.3f}  ", "dim"),
            cell(f"{order:<11} ", _COLOURS.get(order, "")),
            (f"{mark} {event.type:<23}", style),
            cell(detail),
        )
        line.truncate(out.width, overflow="ellipsis")
        out.print(line)


def _ledger(outcome: Outcome) -> Table:
    made = table("order", "what", "stock", "cash", "parcels", numbers=("stock", "cash", "parcels"))
    for entry in outcome.ledger:
        made.add_row(
            cell(entry.order, _COLOURS.get(entry.order, "")), cell(entry.what), *_amounts({entry.account: entry.amount})
        )
    made.add_section()
    for order in ORDERS:
        made.add_row(
            cell(order.id, _COLOURS[order.id]),
            Text("all in all", "bold"),
            *_amounts(sums(outcome.ledger, order.id), zero="0"),
        )
    return made


def _amounts(moved: dict[str, int], zero: str = "") -> list[Text]:
    cash = moved.get("cash", 0)
    return [
        Text(f"{moved.get('stock', 0):+d}" if moved.get("stock") else zero),
        Text(f"{cash / 100:+.2f}" if cash else zero),
        Text(f"{moved.get('parcels', 0):+d}" if moved.get("parcels") else zero),
    ]


def _ends(outcome: Outcome) -> Panel:
    lines: list[Any] = [
        Text.assemble(cell(f"{order:<11}", _COLOURS.get(order, "")), " ", state_cell(state))
        for order, state in outcome.states.items()
    ]
    faults = outcome.faults()
    told = f"Each effect happened once, though the worker was killed. {outcome.seconds:.1f} s in all."
    lines.append(Text("; ".join(faults) if faults else told, "red" if faults else ""))
    return Panel(Text("\n").join(lines), border_style="red" if faults else "green")
