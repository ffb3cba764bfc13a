"""Plots of a training, drawn by a callback while the training goes on.

    pip install matplotlib 'background-futures[process]'
    python examples/lightning_callback.py [FOLDER]

The hooks are those of Lightning's Callback: with Lightning, derive `PlotCallback` from that, pass
`weights.detach().cpu().numpy()`, and leave out `Trainer` and `Softmax`, which stand for a training.

- `ProcessExecutor`, because matplotlib computes: a thread would take the interpreter's lock from
  the training. A script needs no `__main__` guard for it. What a call is given is pickled at the
  call, so each picture shows the weights of its own step, though they change in place.
- `timeout=60`: a plot that hangs is ended after a minute and fails, so it can't hang the end.
- `flush()` in `teardown`, and in `on_exception`, which Lightning calls instead of it when the
  training raises: the pictures are complete when `fit` returns. A plot that fails takes nothing
  with it: the log has its traceback and the line that asked for it, and `flush()` logs how many
  there were. To have it raise them, write `flush(check=True)`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from background import ProcessExecutor, background, flush


@background(executor=ProcessExecutor(timeout=60))
def draw(path: Path, weights: np.ndarray, losses: list[float]) -> None:
    """Draw which class the model sees where, and its losses so far."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    regions, curve = figure.subplots(1, 2)
    x, y = np.meshgrid(np.linspace(-4, 4, 200), np.linspace(-4, 4, 200))
    classes = np.stack([x, y, np.ones_like(x)], axis=-1) @ weights
    regions.pcolormesh(x, y, classes.argmax(axis=-1), cmap="Pastel1")
    regions.set_title(path.stem)
    curve.semilogy(losses)
    curve.set_title(f"loss {losses[-1]:.3f}")
    figure.savefig(path)


class PlotCallback:
    """Draws the model at every so many batches, in the background."""

    def __init__(self, folder: Path, every: int = 10) -> None:
        self.folder, self.every = folder, every
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        if batch_idx % self.every == 0:
            draw(self.folder / f"step-{batch_idx:04}.png", pl_module.weights, self.losses)

    def on_exception(self, trainer, pl_module, exception) -> None:
        flush()

    def teardown(self, trainer, pl_module, stage) -> None:
        flush()


class Softmax:
    """A linear classifier of points in the plane."""

    def __init__(self) -> None:
        self.weights = np.zeros((3, 3))

    def training_step(self, points: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        inputs = np.column_stack([points, np.ones(len(points))])
        odds = np.exp(inputs @ self.weights)
        chances = odds / odds.sum(axis=1, keepdims=True)
        loss = -np.log(chances[np.arange(len(labels)), labels]).mean()
        self.weights -= 0.2 * inputs.T @ (chances - np.eye(3)[labels]) / len(labels)
        return {"loss": loss}


class Trainer:
    """Calls a callback's hooks when Lightning does."""

    def fit(self, model: Softmax, batches: list, callback: PlotCallback) -> None:
        try:
            for number, batch in enumerate(batches):
                outputs = model.training_step(*batch)
                callback.on_train_batch_end(self, model, outputs, batch, number)
        except BaseException as error:
            callback.on_exception(self, model, error)
            raise
        callback.teardown(self, model, "fit")


folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="lightning-callback-"))
folder.mkdir(parents=True, exist_ok=True)
random = np.random.default_rng(0)
labels = random.integers(3, size=(100, 64))
points = 2 * np.array([(0, 1), (-1, -1), (1, -1)])[labels] + random.normal(size=(100, 64, 2))
model = Softmax()
Trainer().fit(model, list(zip(points, labels, strict=True)), PlotCallback(folder))
right = (np.dstack([points, np.ones((100, 64, 1))]) @ model.weights).argmax(axis=-1) == labels
print(f"trained: {right.mean():.1%} of the points are classified; pictures in {folder}")
