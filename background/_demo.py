"""The demo: one training, again and again, with pictures that wait or compute.

Softmax regression on scikit-learn's handwritten digits makes a picture of its weights and its
loss at intervals. Pictures that wait are posted to a slow plotting service, inline and in the
background; pictures that compute are drawn by matplotlib, inline, in a thread and in a process.
The service is a real HTTP server in a process of its own (`python -m background._demo FOLDER
LATENCY`), so that it shares neither the interpreter's lock nor the fate of the training.
"""

from __future__ import annotations

import http.client
import importlib
import io
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter
from typing import Any

from background import BackgroundError, Future, ProcessExecutor, background, flush
from background._picture import Run, Span, draw_timelines

__all__ = ["Trouble", "run"]

SECONDS = 4.0  # of training in each run, unless the number of steps is given
SPACING = 1.5  # training between two pictures, in latencies: the backlog must be able to drain
PICTURE = re.compile(r"(waiting|computing)-(inline|background|thread|process)-\d{4,}\.png")
TILE = 8  # pixels of a picture for a pixel of a digit

Plot = Callable[[str, Any, list[float]], Span | Future[Span]]


class Trouble(Exception):
    """What keeps the demo from running, in one sentence for its user."""


def run(folder: Path | None, steps: int | None, latency: float) -> None:
    """Train once for each way of plotting, print where the time went, and draw it.

    Args:
        folder: where the pictures go, made if it is missing; None makes a temporary one.
        steps: of gradient descent in each run; None for as many as take four seconds here.
        latency: seconds after which the plotting service answers.

    Raises:
        Trouble: a package is missing, the folder can't be written, or the service failed.
    """
    for name in ("numpy", "sklearn.datasets", "matplotlib.image", "tqdm", "threadpoolctl"):
        need(name)
    folder = writable(folder)
    # One thread for the linear algebra: several would fight over the cores, and the table
    # would show that fight instead of the wait.
    with need("threadpoolctl").threadpool_limits(1), service(folder, latency) as port:
        numbers = Numbers(port)
        step_seconds = numbers.warm_up()
        wanted = steps or math.ceil(SECONDS / step_seconds)
        # Four pictures at least, also of a run too short for its service.
        every = max(min(math.ceil(SPACING * latency / step_seconds), wanted // 4), 1)
        if steps is None:
            steps = wanted // every * every  # the last step has its picture, for flush to wait
        print(
            f"Softmax regression on handwritten digits, {steps:,} steps, a picture "
            f"every {every:,}, "
            f"for a service that takes {latency * 1000:g} ms to answer"
        )
        draw = partial(draw_figure, folder)
        in_process = background(draw, executor=ProcessExecutor())
        for warm_up in (draw, in_process):  # imports matplotlib, here and there
            warm_up("timelines.png", numbers.numpy.ones((64, 10)), [1.0])
        flush(check=True)
        ways: list[tuple[str, Plot | None]] = [
            ("no plots", None),
            ("waiting, inline", numbers.post),
            ("waiting, background", background(numbers.post)),
            ("computing, inline", draw),
            ("computing, thread", background(draw)),
            ("computing, process", in_process),
        ]
        total = len(ways) * steps
        with need("tqdm").tqdm(total=total, unit=" steps", leave=False, disable=None) as bar:
            try:
                runs = [numbers.train(name, steps, every, plot, bar) for name, plot in ways]
            except BackgroundError as error:
                raise Trouble(
                    f"{error.count} pictures got lost on the way: {error.exceptions[0]!r}"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                raise Trouble(f"the plotting service failed: {error!r}") from error
    print(table(runs))
    read = {f"{run.accuracy:.1%}" for run in runs}
    print(f"Each of the models reads {' or '.join(sorted(read))} of unseen digits right.")
    draw_timelines(runs, latency, folder / "timelines.png")
    print(f"Pictures: {folder}\nWhere the time went: {folder / 'timelines.png'}")


class Numbers:
    """The data, the descent, and the pictures; the one place for untyped libraries."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.numpy: Any = need("numpy")
        self.image: Any = need("matplotlib.image")
        images, digits = need("sklearn.datasets").load_digits(return_X_y=True)
        images, targets = images / 16, self.numpy.eye(10)[digits]
        self.images, self.unseen_images = images[:1437], images[1437:]
        self.targets, self.unseen_digits = targets[:1437], digits[1437:]

    def descend(self, weights: Any) -> float:
        """Change the weights in place by one step of gradient descent, and return the loss."""
        scores = self.images @ weights
        scores -= scores.max(axis=1, keepdims=True)
        self.numpy.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        loss = -self.numpy.log((scores * self.targets).sum(axis=1)).mean()
        weights -= 0.05 * (self.images.T @ (scores - self.targets)) / len(self.images)
        return float(loss)

    def warm_up(self) -> float:
        """Do once what later is timed, and return the seconds of a step."""
        self.draw(self.numpy.zeros((64, 10)), [1.0])
        weights, count = self.numpy.zeros((64, 10)), 0
        for seconds in (0.1, 0.3):  # the first finds the caches cold
            start, count = perf_counter(), 0
            while perf_counter() < start + seconds:
                self.descend(weights)
                count += 1
        return (perf_counter() - start) / count

    def draw(self, weights: Any, losses: list[float]) -> bytes:
        """Draw the weights of the ten digits, and the losses beneath, as a PNG.

        By hand: a matplotlib figure computes for 50 ms, and holds the interpreter's lock for
        as long, which is work for another process. This takes 3 ms; what remains is the wait.
        """
        np = self.numpy
        tiles = weights.T.reshape(2, 5, 8, 8).swapaxes(1, 2).reshape(16, 40)
        tiles = np.kron(tiles / (abs(tiles).max() or 1), np.ones((TILE, TILE)))
        width, height = tiles.shape[1], 80
        at = np.linspace(0, len(losses) - 1, width).round().astype(int)
        top = height - 2 - np.asarray(losses)[at] / max(losses) * (height - 10)
        rows = np.arange(height)[:, None]
        curve = np.where(rows > top, 0.3, 0.0) + np.where(abs(rows - top) < 1.5, 0.7, 0.0)
        file = io.BytesIO()
        picture = np.vstack([tiles, curve])
        self.image.imsave(file, picture, vmin=-1, vmax=1, cmap="RdBu", format="png")
        return file.getvalue()

    def post(self, name: str, weights: Any, losses: list[float]) -> Span:
        """Draw a picture and post it to the plotting service: the slow call that waits."""
        start = perf_counter()
        body = self.draw(weights, losses)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", f"/{name}", body)
            answer = connection.getresponse()
            if answer.status != 201:
                raise http.client.HTTPException(f"{answer.status} {answer.reason}")
        finally:
            connection.close()
        return start, perf_counter()

    def train(self, name: str, steps: int, every: int, plot: Plot | None, bar: Any) -> Run:
        """Run the training once; `plot` is the function, the decorated function or None."""
        run = Run(name, steps)
        prefix = name.replace(", ", "-")
        weights, losses = self.numpy.zeros((64, 10)), list[float]()
        futures: list[Future[Span]] = []
        bar.set_description(name)
        run.start = perf_counter()
        try:
            for step in range(1, steps + 1):
                losses.append(self.descend(weights))
                if step % every == 0:
                    bar.update(every)
                    if plot is not None:
                        before = perf_counter()
                        # Copies: the loop changes both before the picture is drawn.
                        file = f"{prefix}-{step // every:04}.png"
                        made = plot(file, weights.copy(), losses.copy())
                        run.calls.append((before, perf_counter()))
                        if isinstance(made, Future):
                            futures.append(made)
                        else:
                            run.plots.append(made)
            run.loop_end = perf_counter()
            flush(check=True, progress=False)  # the bar of the demo is enough
            run.flush_end = perf_counter()
            run.plots += [future.result() for future in futures]
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            flush()  # the one that runs, while its service still lives
            raise
        bar.update(steps % every)
        guesses = (self.unseen_images @ weights).argmax(axis=1)
        run.accuracy = float((guesses == self.unseen_digits).mean())
        return run


def draw_figure(folder: Path, name: str, weights: Any, losses: list[float]) -> Span:
    """Draw the weights and the losses as a matplotlib figure: the slow call that computes.

    The clock is the machine's, the same in every process of it.
    """
    start = perf_counter()
    # A figure of its own, never pyplot, which keeps one current figure for all threads.
    figure = need("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
    panels = figure.subplot_mosaic([list("01234"), list("56789"), ["loss"] * 5])
    limit = abs(weights).max()
    for digit in range(10):
        panel = panels[str(digit)]
        panel.imshow(weights[:, digit].reshape(8, 8), vmin=-limit, vmax=limit, cmap="RdBu")
        panel.set_axis_off()
    panels["loss"].plot(losses)
    figure.savefig(folder / name)
    return start, perf_counter()


def table(runs: list[Run]) -> str:
    """Return where the time went, a line a run."""
    lines = [f"\n{'plots':<21}{'pictures':>9}{'loop':>10}{'flush':>10}{'steps/s':>10}{'loop':>10}"]
    for run in runs:
        lines.append(
            f"{run.name.removesuffix(' plots'):<21}{len(run.plots):>9}{run.loop:>8.2f} s"
            f"{run.flush:>8.2f} s{run.steps / run.loop:>10,.0f}{run.loop / runs[0].loop:>9.2f}x"
        )
    return "\n".join(lines) + "\n"


def need(name: str) -> Any:
    """Import a module of the extra `demo`, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Trouble(
            f"the demo needs {error.name or name}, which is not installed: "
            "pip install 'background-futures[demo]'"
        ) from error


def writable(folder: Path | None) -> Path:
    """Return the folder, without an earlier demo's pictures, or say why it can't be written."""
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="background-demo-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if PICTURE.fullmatch(path.name):
                path.unlink()
        (folder / "timelines.png").write_bytes(b"")
    except OSError as error:
        raise Trouble(f"the folder {folder} can't be written: {error.strerror}") from error
    return folder


@contextmanager
def service(folder: Path, latency: float) -> Generator[int, None, None]:
    """Run the plotting service in a process of its own, and give its port.

    Its life hangs on our end of a pipe: it ends when the pipe closes, which the system sees to
    even when this process is killed.
    """
    command = [sys.executable, "-m", "background._demo", str(folder), repr(latency)]
    # Found wherever this one was found, installed or not.
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            if not port:
                raise Trouble("the plotting service could not be started; see above for why")
            yield int(port)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def serve(folder: Path, latency: float) -> None:
    """Store each picture that is posted, and answer after the latency, until stdin closes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that the standard library calls
            arrived = time.monotonic()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = self.path.removeprefix("/")
            known = PICTURE.fullmatch(name)
            if known:
                (folder / name).write_bytes(body)
            time.sleep(max(arrived + latency - time.monotonic(), 0))
            self.send_response(201 if known else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing: the terminal belongs to the training."""

    # Ctrl-C goes to both processes; this one ends when the training does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), float(sys.argv[2]))
