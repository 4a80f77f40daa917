"""Pictures of a run: curves, time of its steps, confusion matrix, contact sheet. Draws; computes
nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib import colormaps
from matplotlib.figure import Figure

from engine.timing import PARTS
from pipelines.batch import Batch

SHEET_CLIPS = 6
SHEET_FRAMES = 8
MOST_POINTS = 1000


def curves(train: list[dict[str, Any]], evaluation: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and loss over epochs, training and evaluation, as one PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for axis, key, scale in ((accuracy, "top1", 100.0), (loss, "loss", 1.0)):
        for name, lines, colour in (("training", train, "C0"), ("evaluation", evaluation, "C1")):
            epochs = [line["epoch"] + 1 for line in lines]
            axis.plot(epochs, [line[key] * scale for line in lines], colour, marker=".", label=name)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    accuracy.set(ylabel="top-1 (%)", ylim=(0, 102))
    # The two are not one quantity: training sums smoothed terms over all heads.
    loss.set(ylabel="loss (training: all terms; evaluation: cross-entropy)", yscale="log")
    accuracy.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def time_split(lines: list[dict[str, Any]], path: Path) -> None:
    """What a step's time went into, and clips per second, over the steps, as PNG; `lines` of an
    older run without these figures are left out."""
    lines = [line for line in lines if "step_s" in line]
    lines = lines[:: max(len(lines) // MOST_POINTS, 1)]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    split, speed = figure.subplots(1, 2)
    parts = [part for part in PARTS if any(f"{part}_s" in line for line in lines)]
    seconds = [[line.get(f"{part}_s", 0.0) for line in lines] for part in parts]
    if steps:
        split.stackplot(steps, seconds, labels=parts, step="pre")
        split.legend(loc="upper left", fontsize=7, reverse=True)
    split.set(xlabel="step", ylabel="seconds per step")
    speed.plot(steps, [line["clips_per_s"] for line in lines], "C0", drawstyle="steps-pre")
    speed.set(xlabel="step", ylabel="clips per second, all ranks", ylim=(0, None))
    speed.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Confusion matrix as PNG: rows are labels, columns predictions, each row in percent."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes = len(shares)
    side = min(max(3.5, 0.55 * classes), 14)
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares * 100, cmap="Blues", vmin=0, vmax=100)
    axis.set(xlabel="prediction", ylabel="label")
    if classes <= 30:
        axis.set_xticks(range(classes), names, rotation=45, ha="right")
        axis.set_yticks(range(classes), names)
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(
                column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour
            )
    figure.colorbar(image, label="share of the label's clips (%)", shrink=0.8)
    figure.savefig(path, dpi=110)


def contact_sheet(batch: Batch, clips: Sequence[str], path: Path) -> None:
    """First clips of a batch as PNG. Of each a row of frames per modality (RGB above depth), and
    below them as many rows of motion maps."""
    shown = min(len(clips), SHEET_CLIPS, len(batch.label))
    clips_shown = [clip[:shown].float().permute(0, 2, 3, 4, 1).cpu() for clip, _ in batch.streams]
    rows = [np.rint(pixels.numpy() * 128 + 127.5).astype(np.uint8) for pixels in clips_shown]
    maps = [maps[:shown, 0].cpu().numpy() for _, maps in batch.streams if maps is not None]
    rows += [colormaps["inferno"](values / 2, bytes=True)[..., :3] for values in maps]
    frames = np.linspace(0, rows[0].shape[1] - 1, SHEET_FRAMES).round().astype(int)
    width = rows[0].shape[3]
    gap = width // 16  # white, right of each frame and below it
    size = (SHEET_FRAMES * 1.3, shown * (len(rows) * 1.35 + 0.4))
    figure = Figure(figsize=size, layout="constrained")
    for clip, axis in enumerate(figure.subplots(shown, 1, squeeze=False)[:, 0]):
        tiles = np.stack([images[clip, frames] for images in rows])
        tiles = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
        axis.imshow(rearrange(tiles, "row frame h w c -> (row h) (frame w) c"))
        axis.set_title(clips[clip], fontsize=8, loc="left")
        middles = (width + gap) * np.arange(SHEET_FRAMES) + width / 2
        axis.set_xticks(middles, [f"frame {frame}" for frame in frames], fontsize=6)
        axis.set_yticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)
