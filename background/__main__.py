"""The command line: `python -m background --help`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NoReturn

from background import _demo

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
    return main


def main(arguments: list[str] | None = None) -> int:
    """Run the command of the arguments, by default the program's, and return the exit code."""
    given = parser().parse_args(arguments)
    try:
        _demo.run(getattr(given, "folder", None), getattr(given, "steps", None), given.latency)
    except _demo.Trouble as trouble:
        print(f"python -m background {given.command}: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
