"""A TensorBoard writer that holds up no training.

    pip install matplotlib tensorboardX tensorboard background-futures
    python examples/tensorboard_writer.py [FOLDER]
    tensorboard --logdir FOLDER

tensorboardX's SummaryWriter writes its file in a thread, but encodes images and draws figures in
its caller, which takes milliseconds for each. Here that goes to the background, too.

- `ThreadExecutor()`, an executor of the writer's own with its one worker: events are written in
  the order of the calls. Not a process: an open file can't go there. So a figure is drawn under the
  interpreter's lock, which it shares with the training; the log says once what that costs.
- `snapshot=True`: an array that the training changes in place is written as it was at the call.
  A figure is handed over, not copied: draw the next one on a new `Figure`.
- An event that can't be made, of an array that is no image say, is logged with the line that asked
  for it, and the others are written.
"""

import sys
import tempfile
from contextlib import closing

import numpy as np
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from background import ThreadExecutor, background, flush

in_order = background(executor=ThreadExecutor(), snapshot=True)


class BackgroundWriter:
    """Makes events in the background and writes them in the order of the calls."""

    def __init__(self, folder: str) -> None:
        self.writer = SummaryWriter(folder)

    @in_order
    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.writer.add_scalar(tag, value, step)

    @in_order
    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str = "CHW") -> None:
        self.writer.add_image(tag, image, step, dataformats=dataformats)

    @in_order
    def add_figure(self, tag: str, figure: Figure, step: int) -> None:
        self.writer.add_figure(tag, figure, step)

    def flush(self) -> None:
        """Hand all events over to SummaryWriter, whose thread writes the last few by and by."""
        flush()
        self.writer.flush()

    def close(self) -> None:
        """Write all events and close the file."""
        flush()
        self.writer.close()


def histogram(values: np.ndarray) -> Figure:
    figure = Figure(figsize=(4, 3), layout="constrained")
    figure.subplots().hist(values.ravel(), bins=50)
    return figure


folder = sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="tensorboard-writer-")
x = np.linspace(-1, 1, 64)
target = np.exp(-4 * (x**2 + x[:, np.newaxis] ** 2))
canvas = np.random.default_rng(0).random((64, 64))
with closing(BackgroundWriter(folder)) as writer:  # also if the training raises
    for step in range(50):
        error = canvas - target
        canvas -= 0.1 * error  # in place, as optimizers do
        writer.add_scalar("loss", np.mean(error**2), step)
        if step % 10 == 0:
            writer.add_image("canvas", canvas, step, "HW")
            writer.add_figure("errors", histogram(error), step)
print(f"trained to a loss of {np.mean(error**2):.5f}; tensorboard --logdir {folder}")
