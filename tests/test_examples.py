"""The programs in examples/, whole and with faults written into them, do what they say."""

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

import background

EXAMPLES = Path(__file__).parent.parent / "examples"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(background.__file__).parent.parent),
    "MPLBACKEND": "Agg",
}


class Program:
    """One of the examples, with lines changed, and what it left behind."""

    def __init__(
        self, name: str, folder: Path, changes: dict[str, str] | None = None, code: int = 0
    ) -> None:
        self.folder = folder / "new" / "results"
        source = (EXAMPLES / name).read_text("utf-8")
        for line, instead in (changes or {}).items():
            assert source.count(line) == 1, line
            source = source.replace(line, instead)
        path = EXAMPLES / name
        if changes:
            path = folder / name
            path.write_text(source, "utf-8")
        command = [sys.executable, str(path), str(self.folder)]
        with subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                self.out, self.err = process.communicate(timeout=90)
            finally:
                process.kill()
        assert process.returncode == code, self.err

    def failures(self, name: str) -> int:
        """Return how many failures were logged, each once and with its place."""
        what = "failed and its exception was never retrieved"
        count = self.err.count(what) - self.err.count(f"background call {what}")
        lines = re.findall(rf"^\S+\(…\), called at {name}:\d+ in \S+ failed", self.err, re.M)
        assert len(lines) == count, self.err
        assert (f"{count} background call{'s' * (count > 1)} failed" in self.err) == (count > 0)
        return count


def picture(file: Path | io.BytesIO) -> np.ndarray:
    """Return the pixels of a picture; an error if it is not whole."""
    with Image.open(file) as opened:
        assert opened.format == "PNG"
        return np.atleast_3d(np.asarray(opened, float))


# -- The callback --------------------------------------------------------------------------

CALLBACK = "lightning_callback.py"
STEPS = [f"step-{step:04}" for step in range(0, 100, 10)]
FIGURE = "    figure = Figure(figsize=(8, 4)"
TEARDOWN = '        callback.teardown(self, model, "fit")\n'
ON_EXCEPTION = "            callback.on_exception(self, model, error)\n"
COUNT = "print(len(list(callback.folder.iterdir())), 'pictures')\n"


def pictures(folder: Path) -> dict[str, bytes]:
    """Return all pictures, each of which must be whole."""
    assert all(picture(path).shape == (400, 800, 4) for path in folder.glob("*.png"))
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


def test_the_callback(tmp_path: Path) -> None:
    """The pictures are, bit by bit, those of a training that stops for each of them."""
    done = Program(CALLBACK, tmp_path)
    assert "trained: 9" in done.out
    assert done.failures(CALLBACK) == 0
    inline = Program(
        CALLBACK,
        tmp_path / "new",
        {
            "import ProcessExecutor,": "import InlineExecutor,",
            "ProcessExecutor(timeout=60))": "InlineExecutor())",
        },
    )
    drawn = pictures(done.folder)
    assert sorted(drawn) == STEPS
    assert len(set(drawn.values())) == len(STEPS)
    assert drawn == pictures(inline.folder)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raise OSError('no space')", "OSError: no space"),
        (f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})", "was killed by SIGKILL"),
        ("import threading; threading.Event().wait()", "ran longer than timeout=3 s"),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_a_picture_that_fails(fault: str, says: str, tmp_path: Path) -> None:
    """A plot that raises, dies or hangs takes neither the training nor another picture with it.

    All others are there when `fit` returns.
    """
    changes = {
        FIGURE: f"    if path.stem == 'step-0040': {fault}\n{FIGURE}",
        TEARDOWN: f"{TEARDOWN}        {COUNT}",
    }
    if "timeout" in says:
        changes["timeout=60)"] = "timeout=3)"
    done = Program(CALLBACK, tmp_path, changes)
    assert "trained: 9" in done.out
    assert says in done.err
    failed = done.failures(CALLBACK)
    assert failed >= 1
    if "timeout" not in says:  # on a busy machine three seconds are too short for others, too
        assert failed == 1
        assert "9 pictures" in done.out
        assert sorted(pictures(done.folder)) == sorted({*STEPS} - {"step-0040"})


def test_a_training_that_raises(tmp_path: Path) -> None:
    """A training that raises ends with its own error, and has its pictures before that."""
    step = "                outputs = model.training_step(*batch)\n"
    raises = "                if number == 55: raise FloatingPointError('diverged')\n"
    changes = {step: raises + step, ON_EXCEPTION: f"{ON_EXCEPTION}            {COUNT}"}
    done = Program(CALLBACK, tmp_path, changes, code=1)
    assert done.out == "6 pictures\n"
    assert done.err.endswith("FloatingPointError: diverged\n")
    assert done.err.count("Traceback") == 1
    assert sorted(pictures(done.folder)) == STEPS[:6]


# -- The writer ----------------------------------------------------------------------------

WRITER = "tensorboard_writer.py"


def events(folder: Path) -> list[Event]:
    """Return all events of a folder's one file, whose checksums must be right."""
    (path,) = folder.iterdir()
    file = io.BytesIO(path.read_bytes())
    found = []
    while header := file.read(8):
        assert struct.unpack("<I", file.read(4)) == (masked_crc32c(header),)
        data = file.read(*struct.unpack("<Q", header))
        assert struct.unpack("<I", file.read(4)) == (masked_crc32c(data),)
        found.append(Event.FromString(data))
    assert found[0].file_version
    return found[1:]


def names(found: list[Event]) -> list[tuple[int, str]]:
    return [(event.step, value.tag) for event in found for value in event.summary.value]


def expected(steps: int) -> list[tuple[int, str]]:
    return [
        (step, tag)
        for step in range(steps)
        for tag in ("loss", "canvas", "errors")
        if tag == "loss" or step % 10 == 0
    ]


HELD = {
    "class BackgroundWriter:": (
        "import threading\ngate = threading.Event()\nheld = in_order(gate.wait)()\n\n"
        "class BackgroundWriter:"
    ),
    '        """Write all events and close the file."""\n': (
        "        print('the loop has ended', held.done())\n        gate.set()\n"
    ),
}


@pytest.mark.parametrize("changes", [{}, HELD], ids=["as it is", "all after the loop"])
def test_the_writer(changes: dict[str, str], tmp_path: Path) -> None:
    """The file has all events, in order and as the values were at the call, however late."""
    done = Program(WRITER, tmp_path, changes)
    assert done.failures(WRITER) == 0
    assert ("the loop has ended False" in done.out) == bool(changes)
    found = events(done.folder)
    assert names(found) == expected(50)
    values = {(event.step, value.tag): value for event in found for value in event.summary.value}
    x = np.linspace(-1, 1, 64)
    target = np.exp(-4 * (x**2 + x[:, np.newaxis] ** 2))
    canvas = np.random.default_rng(0).random((64, 64))
    for step in range(50):
        error = canvas - target
        canvas = canvas - 0.1 * error
        assert number(values[step, "loss"]) == pytest.approx(np.mean(error**2), rel=1e-5)
        if step % 10 == 0:
            written = picture(image(values[step, "canvas"]))[..., 0]
            assert written == pytest.approx(np.floor(canvas * 255), abs=1)
            assert picture(image(values[step, "errors"])).shape == (300, 400, 3)


def number(value: Any) -> float:
    return value.simple_value or value.tensor.float_val[0]


def image(value: Any) -> io.BytesIO:
    return io.BytesIO(value.image.encoded_image_string)


def test_an_event_that_fails(tmp_path: Path) -> None:
    """An event that can't be made is logged once, and all others are in the file, in order."""
    done = Program(WRITER, tmp_path, {'step, "HW")': 'step, "HW" if step != 20 else "CHW")'})
    assert done.failures(WRITER) == 1
    assert "add_image(…), called at tensorboard_writer.py:" in done.err
    assert names(events(done.folder)) == [n for n in expected(50) if n != (20, "canvas")]


def test_a_training_that_raises_while_it_writes(tmp_path: Path) -> None:
    """A training that raises has all its events in the file, and its own error."""
    step = "        error = canvas - target\n"
    done = Program(WRITER, tmp_path, {step: f"        1 / (25 - step)\n{step}"}, code=1)
    assert done.err.endswith("ZeroDivisionError: division by zero\n")
    assert done.err.count("Traceback") == 1
    assert names(events(done.folder)) == expected(25)


# -- The dashboard -------------------------------------------------------------------------

DASHBOARD = "plotly_dashboard.py"
SHOW = "    show(page, step, losses[-1000:], weights)\n"
STATES = 10_000
FLUSH = "flush()  # the last state is shown\n"
REPLACE = "    os.replace(new, page)\n"


def shown(folder: Path) -> tuple[str, list[float], list[float]]:
    """Return the title of the page, and the losses and the weights that it shows."""
    page = (folder / "dashboard.html").read_text("utf-8")
    assert page.rstrip().endswith("</html>")
    assert "location.reload" in page
    assert (folder / "plotly.min.js").stat().st_size > 1e6
    text = page.partition("Plotly.newPlot(")[2]
    decoder = json.JSONDecoder()
    data, end = decoder.raw_decode(text[text.index("[") :])
    rest = text[text.index("[") + end :]
    layout, _ = decoder.raw_decode(rest[rest.index("{") :])
    losses, weights = (trace["y"] for trace in data)
    return layout["title"]["text"], losses, weights


def check_last(folder: Path) -> None:
    title, losses, weights = shown(folder)
    assert title == f"step {STATES - 1}, loss {losses[-1]:.5f}"
    assert len(losses) == 1000
    assert weights == pytest.approx(np.arange(20), abs=0.1)
    assert not list(folder.glob("*.new"))


def test_the_dashboard(tmp_path: Path) -> None:
    """What is shown at the end is the last state, and each state was shown or dropped."""
    done = Program(DASHBOARD, tmp_path)
    assert done.failures(DASHBOARD) == 0
    check_last(done.folder)
    drawn, dropped = counts(done)
    assert drawn >= 1
    assert drawn + dropped == STATES


def counts(done: Program) -> tuple[int, int]:
    words = done.out.splitlines()[-1].split()
    assert words[:2] == [str(STATES), "states:"]
    return int(words[2]), int(words[4])


def test_the_loop_never_waits(tmp_path: Path) -> None:
    """The loop ends before the first page is drawn; all states but that and the last are dropped.

    Each page waits to be drawn for somebody to open the other end of the gate, which the
    program does after its loop: if that waited for a page, the program would never end.
    """
    figure = "    figure = make_subplots("
    done = Program(
        DASHBOARD,
        tmp_path,
        {
            "losses: list[float] = []\n": (
                "losses = []\nfutures = []\ngate = folder / 'gate'\nos.mkfifo(gate)\n"
            ),
            figure: f"    os.close(os.open(page.parent / 'gate', os.O_RDONLY))\n{figure}",
            SHOW: f"    futures.append({SHOW.strip()})\n",
            FLUSH: (
                "print('done before:', sum(f.done() and not f.cancelled() for f in futures))\n"
                f"opened = os.open(gate, os.O_RDWR)\n{FLUSH}"
                "print('cancelled:', [f.cancelled() for f in futures].count(True))\n"
                "print('the last one:', futures[-1].done() and not futures[-1].cancelled())\n"
            ),
        },
    )
    drawn, dropped = counts(done)
    assert drawn in (1, 2)  # the first state may be replaced before the worker takes it
    assert drawn + dropped == STATES
    assert done.out.splitlines()[1:-1] == [
        "done before: 0",
        f"cancelled: {dropped}",
        "the last one: True",
    ]
    check_last(done.folder)


def test_a_page_that_fails(tmp_path: Path) -> None:
    """A process that dies in the middle of a page leaves the page before it, whole."""
    done = Program(
        DASHBOARD,
        tmp_path,
        {
            SHOW: f"    shows = {SHOW.strip()}\n    step == 0 and shows.result()\n",
            REPLACE: (
                f"    if step == {STATES - 1}:\n        new.write_text('half')\n"
                f"        os.kill(os.getpid(), {signal.SIGKILL:d})\n{REPLACE}"
            ),
        },
    )
    assert "was killed by SIGKILL" in done.err
    title, losses, _ = shown(done.folder)
    assert title.endswith(f", loss {losses[-1]:.5f}")
    assert not title.startswith(f"step {STATES - 1},")
