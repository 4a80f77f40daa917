"""Pictures of an explanation (engine/explain.py), still or moving. Draws; computes nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from PIL import Image

from engine.explain import Explanation

PICTURES = (".png", ".gif")
SHOWN_FRAMES = 8
MOST_LETTERS = 110
"""Of a clip's path in the title: more are wider than the picture."""

FRAME_MS = 120
"""How long the moving picture shows each frame."""

HEAT = matplotlib.colormaps["inferno"]
BRANCH_COLOURS = ("C0", "C1", "C2", "C4", "C5")
MODALITIES = {"rgb": "RGB", "depth": "depth"}


def draw(
    explanations: Sequence[Explanation], top: Sequence[dict[str, Any]], clip: str, path: Path
) -> None:
    """One clip's explanations (one per modality) as PNG, or frame after frame as GIF.

    `top`: the most probable classes as {"name", "probability"}, the explained one first.
    """
    if path.suffix == ".gif":
        images = moving(explanations, top, clip)
        images[0].save(
            path, save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0, optimize=True
        )
    else:
        still(explanations, top, clip).savefig(path, dpi=100)


def still(explanations: Sequence[Explanation], top: Sequence[dict[str, Any]], clip: str) -> Figure:
    """Frames with class activation, their motion maps, and all weights over the clip's time."""
    figure = Figure(figsize=(13, 7.6 * len(explanations) + 0.6), layout="constrained")
    figure.suptitle(_title(top, clip), fontsize=13)
    evidence = _evidence(explanations)
    shown = _shown_frames(np.sum([shares for _, shares in evidence], axis=0))
    parts = figure.subfigures(len(explanations), 1, squeeze=False, hspace=0.03).flat
    for part, explanation, (seen, shares) in zip(parts, explanations, evidence, strict=True):
        above, below = part.subfigures(2, 1, squeeze=False, height_ratios=(3.2, 4.2)).flat
        _frame_rows(above, explanation, seen, shown)
        axes = _timeline(below, explanation, shares, top)
        for axis in axes:
            for t in shown:
                axis.axvline(t, color="0.85", linewidth=0.8, zorder=0)
    return figure


def moving(
    explanations: Sequence[Explanation], top: Sequence[dict[str, Any]], clip: str
) -> list[Image.Image]:
    """One picture per frame of the clip: frame with class activation, motion map, and a cursor on
    the weights over time."""
    figure = Figure(figsize=(13, 4.8 * len(explanations) + 0.5), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(_title(top, clip), fontsize=12)
    parts = figure.subfigures(len(explanations), 1, squeeze=False).flat
    panels = [
        _moving_panel(part, explanation, *evidence, top)
        for part, explanation, evidence in zip(
            parts, explanations, _evidence(explanations), strict=True
        )
    ]
    canvas.draw()
    figure.set_layout_engine("none")  # laid out once: nothing may jump, and frames draw faster
    images = []
    for t in range(len(explanations[0].frames)):
        for panel in panels:
            panel(t)
        canvas.draw()
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        images.append(pixels.quantize(256, dither=Image.Dither.NONE))
    return images


def overlay(frames: NDArray[np.uint8], activation: NDArray[np.floating]) -> NDArray[np.uint8]:
    """frames (T, H, W, 3) under activation (T, h, w) in 0..1 -> (T, H, W, 3).

    1 is the brightest colour; at 0 the frame shows through.
    """
    size = frames.shape[2], frames.shape[1]
    blended = []
    for frame, cells in zip(frames, activation, strict=True):
        smooth = Image.fromarray(cells.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        heat = np.asarray(smooth)
        alpha = (0.75 * np.sqrt(heat))[..., None]
        blended.append((1 - alpha) * frame + alpha * 255 * HEAT(heat)[..., :3])
    return np.rint(blended).astype(np.uint8)


def _evidence(
    explanations: Sequence[Explanation],
) -> list[tuple[NDArray[np.uint8], NDArray[np.floating]]]:
    """Per modality the frames (T, H, W, 3) under their class activation, and the share (T,) of it
    that each frame has: both of that of all modalities, as all of them speak for one score."""
    activations = [explanation.activation for explanation in explanations]
    strongest = max(activation.max() for activation in activations) or 1
    total = sum(activation.sum() for activation in activations) or 1
    return [
        (overlay(e.frames, e.activation / strongest), e.activation.sum((1, 2)) / total)
        for e in explanations
    ]


def _title(top: Sequence[dict[str, Any]], clip: str) -> str:
    """Class, probability and, on a line of its own, the clip, of whose path the end counts."""
    clip = clip if len(clip) <= MOST_LETTERS else "..." + clip[3 - MOST_LETTERS :]
    return f"{top[0]['name']}  ({top[0]['probability']:.1%})\n{clip}"


def _shown_frames(shares: NDArray[np.floating]) -> list[int]:
    """(T,) -> of each of SHOWN_FRAMES equal parts of the clip the frame of most activation."""
    parts = np.array_split(np.arange(len(shares)), min(SHOWN_FRAMES, len(shares)))
    return [int(part[shares[part].argmax()]) for part in parts]


def _frame_rows(
    part: SubFigure, explanation: Explanation, seen: NDArray[np.uint8], shown: Sequence[int]
) -> None:
    """A row of frames under their class activation `seen`, and below it their motion maps."""
    maps = explanation.motion
    axes = part.subplots(1 if maps is None else 2, len(shown), squeeze=False)
    height, width = explanation.activation.shape[1:]
    name = MODALITIES.get(explanation.modality, explanation.modality)
    axes[0, 0].set_ylabel(f"{name},\nclass activation\n({height} x {width} cells)", fontsize=9)
    for axis, t in zip(axes[0], shown, strict=True):
        axis.imshow(seen[t])
        axis.set_title(f"frame {t}", fontsize=9)
    if maps is not None:
        axes[1, 0].set_ylabel("motion map", fontsize=9)
        for axis, t in zip(axes[1], shown, strict=True):
            axis.imshow(maps[t], cmap="gray", vmin=0, vmax=2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])


def _timeline(
    part: SubFigure,
    explanation: Explanation,
    shares: NDArray[np.floating],
    top: Sequence[dict[str, Any]],
) -> list[Axes]:
    """Everything that varies over the frames, one below the other; beside it what does not.

    Returns the axes over time.
    """
    left, right = part.subfigures(1, 2, squeeze=False, width_ratios=(4, 1)).flat
    rows = 1 + len(explanation.attention) + (explanation.frame_weight is not None)
    axes = left.subplots(rows, 1, sharex=True)
    num_frames = len(explanation.frames)
    axes[0].bar(range(num_frames), shares * 100, 0.8, color="0.6")
    axes[0].set(ylabel="share of class\nactivation (%)", ylim=(0, None))
    _attention_over_time(axes[1:], explanation)
    if explanation.frame_weight is not None:
        axes[-1].plot(explanation.frame_weight, "C3", marker=".", markersize=4)
        axes[-1].set(ylim=(0, 1), ylabel="recoupling\nframe weight")
    for axis in axes:
        axis.set_xlim(-0.7, num_frames - 0.3)
        axis.tick_params(labelsize=7)
        axis.yaxis.label.set(fontsize=8, rotation=0, ha="right", va="center")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(f"frame of the clip (0 to {num_frames - 1})", fontsize=8)
    left.align_ylabels(axes)
    beside = right.subplots(1 if explanation.channel_weight is None else 2, 1, squeeze=False)
    _probabilities(beside[0, 0], top)
    if explanation.channel_weight is not None:
        _channel_weights(beside[1, 0], explanation.channel_weight)
    return list(axes)


def _attention_over_time(axes: Sequence[Axes], explanation: Explanation) -> None:
    """One axis per branch: attention of the class token to each frame that the branch sees."""
    for i, attention in enumerate(explanation.attention):
        colour = BRANCH_COLOURS[i % len(BRANCH_COLOURS)]
        axes[i].bar(attention.frames, attention.weights * 100, 0.8, color=colour)
        axes[i].set(
            ylabel=f"attention of the\n{len(attention.frames)}-frame branch (%)", ylim=(0, None)
        )
        axes[i].text(
            1, 1, f"on the class token itself: {attention.on_itself:.0%}", fontsize=7,
            ha="right", va="bottom", color=colour, transform=axes[i].transAxes,
        )  # fmt: skip


def _probabilities(axis: Axes, top: Sequence[dict[str, Any]]) -> None:
    """The most probable classes as bars, the explained one coloured."""
    colours = ["C3", *["0.7"] * (len(top) - 1)]
    axis.barh(range(len(top)), [best["probability"] * 100 for best in top], color=colours)
    axis.set(yticks=[], xlim=(0, 100))
    axis.invert_yaxis()
    for row, best in enumerate(top):
        axis.text(2, row, best["name"], fontsize=8, va="center")
    axis.set_title("probability (%)", fontsize=8)
    axis.tick_params(labelsize=7)


def _channel_weights(axis: Axes, weights: NDArray[np.float32]) -> None:
    """Recoupling weights of the channels, largest first."""
    axis.plot(np.sort(weights)[::-1], "C3")
    axis.set(ylim=(0, 1), xlim=(0, len(weights) - 1))
    axis.set_title("channel weights, sorted", fontsize=8)
    axis.tick_params(labelsize=7)


def _moving_panel(
    part: SubFigure,
    explanation: Explanation,
    seen: NDArray[np.uint8],
    shares: NDArray[np.floating],
    top: Sequence[dict[str, Any]],
) -> Callable[[int], None]:
    """One modality of the moving picture; returns what sets it to frame t."""
    left, right = part.subfigures(1, 2, squeeze=False, width_ratios=(1, 3.4)).flat
    maps = explanation.motion
    pictures = left.subplots(1 if maps is None else 2, 1, squeeze=False).ravel()
    frame = pictures[0].imshow(seen[0])
    motion = None
    if maps is not None:
        motion = pictures[1].imshow(maps[0], cmap="gray", vmin=0, vmax=2)
        pictures[1].set_title("motion map", fontsize=8)
    for axis in pictures:
        axis.set(xticks=[], yticks=[])
    name = MODALITIES.get(explanation.modality, explanation.modality)
    title = pictures[0].set_title(f"{name}, frame {0:2d}, class activation", fontsize=8)
    cursors = [
        axis.axvline(0, color="black") for axis in _timeline(right, explanation, shares, top)
    ]

    def show(t: int) -> None:
        frame.set_data(seen[t])
        if motion is not None and maps is not None:
            motion.set_data(maps[t])
        title.set_text(f"{name}, frame {t:2d}, class activation")
        for cursor in cursors:
            cursor.set_xdata([t, t])

    return show
