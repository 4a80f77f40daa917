"""The file of scores that an evaluation leaves behind: every head's logits of every clip.

NumPy only, so that it can be read where torch is not installed.
"""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE_NAME = "scores.npz"
MOST_NAMED = 5
"""How many clips an error names; the rest is a number."""

Logits = NDArray[np.floating]


@dataclass(frozen=True)
class ClipScores:
    """Scores of every clip of one list: N clips, H heads, K classes."""

    names: NDArray[np.str_]
    """(N,) clip names in the order of the list."""

    labels: NDArray[np.int64]
    """(N,)"""

    heads: tuple[str, ...]
    """H names; the first is the one that top-1 is reported of."""

    logits: Logits
    """(H, N, K) as evaluated: divided by the temperature."""

    source: str
    """File, for messages."""

    def head(self, name: str | None) -> Logits:
        """(N, K) of the head called `name`, by default the first. Raises ValueError."""
        if name is None:
            return self.logits[0]
        if name not in self.heads:
            raise ValueError(f"{self.source}: no head {name!r}; it has {', '.join(self.heads)}")
        return self.logits[self.heads.index(name)]

    def ordered_like(self, other: "ClipScores") -> "ClipScores":
        """The same clips in the order of `other`. Raises ValueError naming clips that only one of
        the two has and clips whose labels differ, and where the class counts differ."""
        if self.logits.shape[2] != other.logits.shape[2]:
            raise ValueError(
                f"{other.source} has {other.logits.shape[2]} classes, "
                f"{self.source} {self.logits.shape[2]}"
            )
        for one, two in ((other, self), (self, other)):
            missing = np.setdiff1d(one.names, two.names)
            if len(missing):
                raise ValueError(
                    f"{two.source}: lacks {len(missing)} of the {len(one.names)} clips of "
                    f"{one.source}: {_first(missing)}; evaluate both with one list"
                )
        by_name = np.argsort(self.names)
        order = by_name[np.searchsorted(self.names, other.names, sorter=by_name)]
        ordered = replace(
            self,
            names=self.names[order],
            labels=self.labels[order],
            logits=self.logits[:, order],
        )
        differing = np.flatnonzero(ordered.labels != other.labels)
        if len(differing):
            raise ValueError(
                f"{self.source}: {len(differing)} clips have other labels than in "
                f"{other.source}: {_first(other.names[differing])}"
            )
        return ordered


def read_scores(path: str | Path) -> ClipScores:
    """Scores of a file, or of the `scores.npz` in a run folder.

    Raises ValueError or OSError naming the file where it is not such a file, or a clip is in it
    twice, or a score is not a finite number.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such file; engine/evaluate.py writes it")
    try:
        with np.load(path, allow_pickle=False) as file:
            names, labels, heads, logits = (
                file[key] for key in ("names", "labels", "heads", "logits")
            )
    except (KeyError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: is no file of scores ({error})") from None
    if logits.shape[:2] != (len(heads), len(names)) or labels.shape != names.shape:
        raise ValueError(
            f"{path}: {len(names)} names, {len(labels)} labels and {len(heads)} heads do not fit "
            f"logits of shape {logits.shape}"
        )
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        raise ValueError(f"{path}: holds clips more than once: {_first(unique[counts > 1])}")
    wrong = ~np.isfinite(logits).all(axis=(0, 2))
    if wrong.any():
        raise ValueError(f"{path}: scores are not finite for {wrong.sum()} clips: "
                         f"{_first(names[wrong])}")  # fmt: skip
    return ClipScores(names, labels, tuple(heads.tolist()), logits, str(path))


def write_scores(path: Path, scores: ClipScores) -> None:
    """The file that `read_scores` reads."""
    np.savez(
        path,
        names=np.asarray(scores.names, dtype=np.str_),
        labels=scores.labels.astype(np.int64),
        heads=np.asarray(scores.heads, dtype=np.str_),
        logits=scores.logits.astype(np.float32),
    )


def _first(names: NDArray[np.str_]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED].tolist()) + more
