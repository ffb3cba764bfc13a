"""The command line: `python -m background --help`."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from pathlib import Path
from typing import NoReturn

import background._executors.sqlite.commands as durable
from background import _demo
from background._executors.sqlite.access import StoreError

__all__ = ["main"]


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2, as `argparse` does."""
        self.exit(2, f"{self.prog}: {message} (--help says more)\n")


def positive_count(text: str) -> int:
    """Return a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def positive_seconds(text: str) -> float:
    """Return a finite number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (0 < seconds < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def parser() -> Parser:
    """Return the parser of all commands."""
    main = Parser(
        prog="python -m background",
        description="Run slow calls in the background, and wait for all of them once.",
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="train a model several times and see what its plots cost",
        description=(
            "Train a small model on real images several times: without plots; with plots posted "
            "to a slow service, inline and in the background; with plots drawn by matplotlib, "
            "inline, in a thread and in a process. Prints where the time went and draws it. "
            "Takes half a minute."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--folder",
        type=Path,
        default=argparse.SUPPRESS,
        help="where the pictures go; those of an earlier demo there are replaced "
        "(default: a new temporary folder)",
    )
    demo.add_argument(
        "--steps",
        type=positive_count,
        default=argparse.SUPPRESS,
        help="steps of each training (default: as many as take four seconds)",
    )
    demo.add_argument(
        "--latency",
        type=positive_seconds,
        default=0.1,
        help="seconds after which the plotting service answers",
    )
    worker = commands.add_parser(
        "worker",
        help="run the calls of a SQLiteExecutor's file",
        description=(
            "Run the calls in the file, those that come later, too, until Ctrl-C or SIGTERM, "
            "which lets the current call end; a second one kills it, and it is run again later."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    worker.add_argument("--workers", type=positive_count, default=1, help="how many at once")
    worker.add_argument("--drain", action="store_true", help="end when no call waits any more")
    worker.add_argument("--create", action="store_true", help="make the file if there is none")
    worker.add_argument(
        "--synchronous",
        choices=["NORMAL", "FULL"],
        default="NORMAL",
        help="whether outcomes survive a power cut, too, for one fsync a call",
    )
    status = commands.add_parser(
        "status",
        help="say which calls of a file wait, run or have failed",
        description="Say which calls wait, run or have failed, and which workers live.",
    )
    status.add_argument("--json", action="store_true", help="print all that is known, for programs")
    retry = commands.add_parser(
        "retry",
        help="run failed calls of a file again",
        description="Let calls run again that failed or that killed their workers.",
    )
    purge = commands.add_parser(
        "purge",
        help="delete what a file keeps of calls that are done",
        description="Delete calls that have failed, killed their workers, were cancelled, or "
        "whose result nobody has read.",
    )
    for command in (worker, status, retry, purge):
        command.add_argument("path", help="the file", metavar="PATH")
    for command in (retry, purge):
        command.add_argument(
            "ids", type=positive_count, nargs="*", help="of these calls alone", metavar="ID"
        )
    return main


def run(given: argparse.Namespace) -> int:
    """Run a command and return the exit code."""
    if given.command == "demo":
        _demo.run(getattr(given, "folder", None), getattr(given, "steps", None), given.latency)
        return 0
    if given.command == "worker":
        return durable.worker(
            given.path,
            given.workers,
            drain=given.drain,
            synchronous=given.synchronous,
            create=given.create,
        )
    if given.command == "status":
        return durable.status(given.path, as_json=given.json)
    change = durable.retry if given.command == "retry" else durable.purge
    return change(given.path, given.ids or None)


def main(arguments: list[str] | None = None) -> int:
    """Run the command of the arguments, by default the program's, and return the exit code."""
    given = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        return run(given)
    except (_demo.Trouble, StoreError) as trouble:
        print(f"python -m background {given.command}: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… status | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
