"""What the loops draw: each as a training would draw it, all in a module that workers import."""

import functools
import io
import os
from typing import Any


def square(data: Any, times: int) -> float:
    """Compute a fixed amount."""
    total = 0.0
    for _ in range(times):
        total += sum([x * x for x in data])
    return total


def plot(step: int, losses: Any) -> float:
    """Stand for a plot that computes for 0.8 ms."""
    return square(losses * 4, 110)


def loss_and_weights(step: int, losses: Any, weights: Any) -> Any:
    """Return a matplotlib figure of a loss curve and an image of the weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    left, right = figure.subplots(1, 2)
    left.plot(losses)
    left.set_title(f"step {step}")
    right.imshow(weights)
    return figure


def draw(step: int, losses: Any, weights: Any, folder: str) -> None:
    """Draw with matplotlib."""
    loss_and_weights(step, losses, weights).savefig(io.BytesIO(), format="png")


def page(step: int, losses: Any, weights: Any, folder: str) -> None:
    """Write an HTML page with plotly; its script is written once, beside the pages."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2)
    figure.add_trace(graph_objects.Scatter(y=losses, name="loss"), row=1, col=1)
    figure.add_trace(graph_objects.Heatmap(z=weights), row=1, col=2)
    figure.update_layout(title=f"step {step}")
    figure.write_html(os.path.join(folder, f"{step}.html"), include_plotlyjs="directory")


@functools.cache
def writer(folder: str) -> Any:
    """Return this process's writer of TensorBoard event files."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(folder)


def event(step: int, losses: Any, weights: Any, folder: str) -> None:
    """Add a figure and an image to TensorBoard's event file."""
    figure = loss_and_weights(step, losses, weights)
    writer(folder).add_figure("loss", figure, step, close=False)  # pyplot doesn't know it
    writer(folder).add_image("weights", weights, step, dataformats="HW")
