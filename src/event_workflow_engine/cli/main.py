"""The entry point of `ewe`: reads the command line, runs the command, turns errors into exit codes."""

import asyncio
import inspect
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from cyclopts import App, CycloptsError

from event_workflow_engine.cli import bench, db, projection, queue, run, schedule, stream, worker
from event_workflow_engine.cli.demo import command as demo
from event_workflow_engine.cli.output import clean
from event_workflow_engine.errors import WorkflowError

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "app", "execute", "main"]

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

_LONGEST: Final = 2000


def _version() -> str:
    try:
        return version("event-workflow-engine")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0 (not installed)"


app: Final = App(name="ewe", help="Run sagas, look at them, and speak to them.", version=_version)
app.command(demo.demo, name="demo")
app.command(worker.worker, name="worker")
app.command(bench.bench, name="bench")
for group in (run.app, queue.app, schedule.app, stream.app, projection.app, db.app):
    app.command(group)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process.

    Exit codes: 0 it is done; 1 it is not, and why stands in one line on standard error; 2 the command line is wrong;
    130 interrupted from the keyboard.

    Args:
        arguments: The words of the command line; those of the process by default.
    """
    sys.exit(execute(sys.argv[1:] if arguments is None else arguments))


def execute(arguments: Sequence[str]) -> int:
    """Run the command line; its exit code."""
    try:
        command, bound, *_ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
        result: Any = command(*bound.args, **bound.kwargs)
        if inspect.iscoroutine(result):
            asyncio.run(result)
        sys.stdout.flush()
    except CycloptsError as error:
        return _say(f"{error} (try --help)", USAGE)
    except WorkflowError as error:
        return _say(f"{type(error).__name__}: {error}", FAILED)
    except BrokenPipeError:
        # Whoever read our output has enough of it. What is still buffered shall not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        return _say(str(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    return OK


def _say(message: str, code: int) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"ewe: {clean(line if len(line) <= _LONGEST else line[:_LONGEST] + ' …')}\n")
    return code


if __name__ == "__main__":
    main()
