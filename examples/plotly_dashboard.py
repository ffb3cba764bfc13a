"""A dashboard of a training, a web page that always shows the latest state.

    pip install numpy plotly 'background-futures[process]'
    python examples/plotly_dashboard.py [FOLDER]

- `max_pending=1, overflow="drop_oldest"`: the training posts every step, far faster than pages are
  written. One page is being written and one state waits; a newer state takes the place of the
  one that waits. So the loop never waits, nothing piles up, and the last state is shown.
- `ProcessExecutor`, because plotly computes: a thread would take the interpreter's lock from the
  training. What a call is given is pickled at the call, and may change in place afterwards.
- The page is replaced as a whole, so a browser never sees half of one; it loads itself again every
  second.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from plotly.subplots import make_subplots

from background import ProcessExecutor, background, flush, stats


@background(executor=ProcessExecutor(), max_pending=1, overflow="drop_oldest")
def show(page: Path, step: int, losses: list[float], weights: np.ndarray) -> None:
    """Replace the page by one that shows this state."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=["loss", "weights"])
    figure.add_scatter(y=losses, row=1, col=1)
    figure.add_bar(y=weights.tolist(), row=1, col=2)
    figure.update_layout(title=f"step {step}, loss {losses[-1]:.5f}", showlegend=False)
    new = page.with_suffix(".new")
    figure.write_html(
        new,
        include_plotlyjs="directory",  # plotly.min.js beside the page, once
        post_script="setTimeout(() => location.reload(), 1000)",
    )
    os.replace(new, page)


folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="plotly-dashboard-"))
folder.mkdir(parents=True, exist_ok=True)
page = folder / "dashboard.html"
print(f"the dashboard is {page}: open it in a browser", flush=True)

random = np.random.default_rng(0)
inputs = random.normal(size=(1000, 20))
outputs = inputs @ np.arange(20.0) + random.normal(size=1000)
weights = np.zeros(20)
losses: list[float] = []
for step in range(10_000):
    error = inputs @ weights - outputs
    losses.append(float(np.mean(error**2)))
    show(page, step, losses[-1000:], weights)
    weights -= 0.002 * inputs.T @ error / len(error)  # in place, as optimizers do
flush()  # the last state is shown
counts = stats()
print(f"{counts.submitted} states: {counts.succeeded} shown, {counts.dropped} dropped")
