"""A journal → `curves.png`: training losses, held-out errors, learning rate and gradient norm against steps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from radio_distill import journal

OTHER_UNITS = ("_teacher", "_degrees")  # the same terms once more, as the teacher would count them
STYLES = ("-", "--", ":", "-.")  # of streams; colours are teachers and their terms
MANY = 10  # lines, past which the legend stands below
SMOOTH = 0.05  # share of the run that a smoothed point averages over


def draw(run: Path) -> Path | None:
    """Write `curves.png` beside the journal; None where there is nothing to draw yet."""
    records = journal.read(run)
    training, heldout = journal.series(records, "step"), journal.series(records, "heldout")
    if not training or len(next(iter(training.values()))[0]) < 2:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [("training loss (thin: every step; thick: smoothed)", _losses(training), True)]
    if heldout:
        errors = {key: value for key, value in heldout.items() if key.endswith("feature_error")}
        title = "held-out feature error (1.0 = the best constant)" if errors else "held out"
        panels.append((title, errors or heldout, False))
    most = max(len(lines) for _, lines, _ in panels)
    size = (5.2 * (len(panels) + 1), 4.2 + (0.1 * most if most > MANY else 0))
    figure, axes = plt.subplots(1, len(panels) + 1, figsize=size, constrained_layout=True)
    for axis, (title, lines, smooth) in zip(axes, panels):
        _plot(axis, lines, smooth)
        axis.set(title=title, xlabel="step")
        axis.set_ylim(bottom=0)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 2} if len(lines) > MANY else {}
        axis.legend(fontsize=8, frameon=False, handlelength=3, **below)
    _rate_and_norm(axes[-1], training)
    temporary = run / ".curves.tmp.png"
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    os.replace(temporary, run / "curves.png")
    return run / "curves.png"


def _losses(training: dict) -> dict:
    """The terms by stream and teacher; where there are none, the loss alone."""
    terms = {key: value for key, value in training.items() if key.count("/") == 2 and not key.endswith(OTHER_UNITS)}
    terms |= {key: value for key, value in training.items() if key.endswith("/mesa")}
    return terms or {key: value for key, value in training.items() if key.endswith("loss")}


def _plot(axis, lines: dict, smooth: bool) -> None:
    streams = list(dict.fromkeys(name.partition("/")[0] for name in lines))
    terms = sorted({name.partition("/")[2] for name in lines})
    for name, (steps, values) in sorted(lines.items()):
        stream, _, term = name.partition("/")
        look = {"color": f"C{terms.index(term) % 10}", "linestyle": STYLES[streams.index(stream) % len(STYLES)]}
        if not smooth:
            axis.plot(steps, values, **look, marker="o", markersize=3, label=f"{name}  {values[-1]:.3f}")
            continue
        window = max(1, int(SMOOTH * len(values)))
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        axis.plot(steps, values, color=look["color"], alpha=0.15, linewidth=0.7)
        axis.plot(steps[window - 1 :], mean, **look, label=f"{name}  {mean[-1]:.3f}")


def _rate_and_norm(axis, training: dict) -> None:
    axis.set(title="learning rate and gradient norm", xlabel="step")
    axis.plot(*training["lr"], color="C0")
    axis.set_ylabel("learning rate", color="C0")
    other = axis.twinx()
    other.plot(*training["norm"], color="C1", linewidth=0.7, alpha=0.7)
    other.set_yscale("log")
    other.set_ylabel("gradient norm", color="C1")
