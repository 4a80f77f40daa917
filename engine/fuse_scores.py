"""Combine the scores of several networks clip by clip: `python engine/fuse_scores.py A B [...]`.

A and B are run folders or the `scores.npz` files that engine/evaluate.py writes. UMDR's average of
four scores is the mean of logits of `RGB DEPTH FUSION FUSION --head merged merged "completed rgb"
"completed depth"`. NumPy only.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the project's packages from any working directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.clip_scores import ClipScores, Logits
from engine.command import exit_status

SWEEP = np.arange(11) / 10
"""Weights of the first of two inputs."""

OPTIMISTIC = (
    "weights chosen by the accuracy on these same clips are optimistic: choose them on other clips"
)


def mean_of_softmax(logits: Logits, weights: NDArray[np.float64]) -> Logits:
    """logits (M, N, K), weights (M,) -> (N, K): logarithm of the weighted mean of probabilities."""
    with np.errstate(divide="ignore"):  # log(0) = -inf is what a weight of 0 means
        log_weights = np.log(weights)[:, None, None]
    return np.logaddexp.reduce(_log_softmax(logits) + log_weights, axis=0)


def mean_of_logits(logits: Logits, weights: NDArray[np.float64]) -> Logits:
    """logits (M, N, K), weights (M,) -> (N, K)."""
    return np.tensordot(weights, logits.astype(np.float64), 1)


def product(logits: Logits, weights: NDArray[np.float64]) -> Logits:
    """logits (M, N, K), weights (M,) -> (N, K): logarithm of the product of probabilities, each to
    the power of its weight.

    It differs from `mean_of_logits` by one number per clip, so both rank the classes alike.
    """
    return np.tensordot(weights, _log_softmax(logits), 1)


METHODS: dict[str, Callable[[Logits, NDArray[np.float64]], Logits]] = {
    "mean of softmax": mean_of_softmax,
    "mean of logits": mean_of_logits,
    "product": product,
}


def fuse(
    inputs: Sequence[ClipScores],
    weights: Sequence[float] | None = None,
    heads: Sequence[str] = (),
) -> ClipScores:
    """One head per method of METHODS, over the clips of the first input in its order.

    `weights`: one per input, by default equal; only their ratios count. `heads`: which head of each
    input, by default its first; a single one is meant for all. Raises ValueError as `ordered_like`
    does, and for weights that are not one number of at least 0 per input with a positive sum.
    """
    shares = _shares(weights, len(inputs))
    aligned = [scores.ordered_like(inputs[0]) for scores in inputs]
    names = _per_input(heads, len(inputs))
    logits = np.stack([scores.head(name) for scores, name in zip(aligned, names, strict=True)])
    fused = np.stack([method(logits, shares) for method in METHODS.values()])
    source = " + ".join(scores.source for scores in inputs)
    return ClipScores(inputs[0].names, inputs[0].labels, np.array(list(METHODS)), fused, source)


def sweep(first: ClipScores, second: ClipScores, heads: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Top-1 of each method for weights w and 1 - w of two inputs, w from 0 to 1 by 0.1."""
    return [
        {"weight": float(w)}
        | {name: top1 for name, top1, _ in accuracies(fuse([first, second], [w, 1 - w], heads))}
        for w in SWEEP
    ]


def accuracies(scores: ClipScores) -> list[tuple[str, float, float]]:
    """(head, top-1, top-5) of each head, in 0..1; top-5 is top-K for K < 5 classes."""
    rows = []
    for name, logits in zip(scores.heads.tolist(), scores.logits, strict=True):
        ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        hit = ranked == scores.labels[:, None]
        rows.append((name, float(hit[:, 0].mean()), float(hit.any(axis=1).mean())))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one line that says what to mend."""
    options = command_line().parse_intermixed_args(arguments)
    return exit_status(lambda: _fuse_files(options))


def _fuse_files(options: argparse.Namespace) -> None:
    if len(options.inputs) < 2:
        raise ValueError("fusing takes at least two files of scores or run folders")
    inputs = [ClipScores.load(path) for path in options.inputs]
    fused = fuse(inputs, options.weights, options.head)
    shares = _shares(options.weights, len(inputs)).tolist()
    table = {scores.source: accuracies(scores) for scores in inputs}
    swept = sweep(inputs[0], inputs[1], options.head) if len(inputs) == 2 else []
    print("\n".join(_text(len(fused.names), table, shares, accuracies(fused), swept)))
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        fused.save(out / "fused.npz")
        result = {
            "clips": len(fused.names), "heads": options.head or "first", "weights": shares,
            "inputs": {source: _as_dict(rows) for source, rows in table.items()},
            "fused": _as_dict(accuracies(fused)), "sweep": swept, "note": OPTIMISTIC,
        }  # fmt: skip
        (out / "fused.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {out / 'fused.npz'}, {out / 'fused.json'}")


def _text(
    clips: int,
    inputs: dict[str, list[tuple[str, float, float]]],
    shares: list[float],
    fused: list[tuple[str, float, float]],
    swept: list[dict[str, Any]],
) -> Iterator[str]:
    """The lines to print."""
    yield f"{clips} clips{'':<21}{'top-1':>8}{'top-5':>8}"
    for source, rows in inputs.items():
        yield source
        yield from (f"  {name:<26}{top1:>8.1%}{top5:>8.1%}" for name, top1, top5 in rows)
    yield "fused, weights " + " ".join(f"{share:.3g}" for share in shares)
    yield from (f"  {name:<26}{top1:>8.1%}{top5:>8.1%}" for name, top1, top5 in fused)
    if swept:
        yield "top-1 by weight of the first"
        yield "  " + "".join(f"{key:>18}" for key in swept[0])
        for row in swept:
            weight, *values = row.values()
            yield f"  {weight:>18.1f}" + "".join(f"{value:>18.1%}" for value in values)
    yield f"note: {OPTIMISTIC}"


def _shares(weights: Sequence[float] | None, count: int) -> NDArray[np.float64]:
    """(count,) weights with sum 1."""
    values = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(values) != count:
        raise ValueError(f"{len(values)} weights for {count} inputs; give one for each")
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ValueError(f"weights {values.tolist()}: none may be negative, one must be positive")
    return values / values.sum()


def _per_input(heads: Sequence[str], count: int) -> Sequence[str | None]:
    if len(heads) not in (0, 1, count):
        raise ValueError(
            f"{len(heads)} heads for {count} inputs; give one for each, or one for all"
        )
    if len(heads) == count:
        return heads
    return [heads[0] if heads else None] * count


def _log_softmax(logits: Logits) -> Logits:
    """Over the last axis, in float64."""
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def _as_dict(rows: list[tuple[str, float, float]]) -> dict[str, dict[str, float]]:
    return {name: {"top1": top1, "top5": top5} for name, top1, top5 in rows}


def command_line() -> argparse.ArgumentParser:
    """INPUT INPUT [...] [--weights W ...] [--head NAME] [--out FOLDER]"""
    parser = argparse.ArgumentParser(prog="engine/fuse_scores.py", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="run folder or scores.npz")
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W",
        help="one number per input, only their ratios count (default: equal); " + OPTIMISTIC,
    )  # fmt: skip
    parser.add_argument(
        "--head", nargs="+", default=(), metavar="NAME",
        help="which head, such as sum, of all inputs or of each (default: the first)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", help="write fused.npz (a file of scores) and fused.json there"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
