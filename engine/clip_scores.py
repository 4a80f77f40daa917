"""The scores of every evaluated clip, kept for fusion with other networks: arrays in a file.

NumPy only: it is read where torch is not installed.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

FILE_NAME = "scores.npz"
ARRAYS = ("names", "labels", "heads", "logits")
MOST_NAMED = 5
"""How many clips an error names; the rest is a number."""

Logits = NDArray[np.floating]


@dataclass(frozen=True)
class ClipScores:
    """N clips in the order of their list, H heads, K classes. The file is a NumPy archive (.npz)
    with the first four as arrays by these names."""

    names: NDArray[np.str_]
    """(N,) as in the split list."""

    labels: NDArray[np.int64]
    """(N,)"""

    heads: NDArray[np.str_]
    """(H,) the first is the one that top-1 is computed from."""

    logits: Logits
    """(H, N, K) divided by the temperature of the evaluation; float32 in the file."""

    source: str = ""
    """The file they were read from, for messages."""

    def save(self, path: Path) -> None:
        """Write the file. Raises OSError."""
        logits = self.logits.astype(np.float32)
        np.savez_compressed(
            path, names=self.names, labels=self.labels, heads=self.heads, logits=logits
        )

    @classmethod
    def load(cls, path: str | Path) -> "ClipScores":
        """What `save` wrote, to the file or into the run folder `path`.

        Raises ValueError naming a file that is something else, or holds scores that are not finite.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{path}: no such file; engine/evaluate.py writes it")
        try:
            with np.load(path, allow_pickle=False) as file:
                scores = cls(**{key: file[key] for key in ARRAYS}, source=str(path))
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile):
            raise ValueError(f"{path}: is no file of scores as engine/evaluate.py writes") from None
        scores._check()
        return scores

    def head(self, name: str | None) -> Logits:
        """(N, K) of the head called `name`, by default the first. Raises ValueError."""
        if name is None:
            return self.logits[0]
        heads = self.heads.tolist()
        if name not in heads:
            raise ValueError(f"{self.source}: no head {name!r}; it has {', '.join(heads)}")
        return self.logits[heads.index(name)]

    def ordered_like(self, other: "ClipScores") -> "ClipScores":
        """The same clips in the order of `other`. Raises ValueError naming clips that one of the
        two lacks or has twice and clips whose labels differ, and where the class counts differ."""
        classes = other.logits.shape[2], self.logits.shape[2]
        if classes[0] != classes[1]:
            raise ValueError(
                f"{other.source} has {classes[0]} classes, {self.source} has {classes[1]}"
            )
        for one, two in ((other, self), (self, other)):
            unique, counts = np.unique(one.names, return_counts=True)
            if len(unique) < len(one.names):
                raise ValueError(f"{one.source}: has clips twice: {_first(unique[counts > 1])}")
            missing = np.setdiff1d(one.names, two.names)
            if len(missing):
                raise ValueError(
                    f"{two.source}: lacks {len(missing)} of the {len(one.names)} clips of "
                    f"{one.source}: {_first(missing)}; evaluate both with one list"
                )
        by_name = np.argsort(self.names)
        order = by_name[np.searchsorted(self.names, other.names, sorter=by_name)]
        labels = self.labels[order]
        differing = np.flatnonzero(labels != other.labels)
        if len(differing):
            raise ValueError(
                f"{self.source}: {len(differing)} clips have other labels than in "
                f"{other.source}: {_first(other.names[differing])}"
            )
        return replace(self, names=other.names, labels=labels, logits=self.logits[:, order])

    def _check(self) -> None:
        found, wanted = self.logits.shape, (len(self.heads), len(self.names))
        if len(found) != 3 or found[:2] != wanted or len(self.labels) != len(self.names):
            raise ValueError(
                f"{self.source}: logits {found} do not fit {wanted[0]} heads and {wanted[1]} clips "
                f"with {len(self.labels)} labels"
            )
        wrong = ~np.isfinite(self.logits).all(axis=(0, 2))
        if wrong.any():
            raise ValueError(
                f"{self.source}: scores are not finite for {wrong.sum()} clips: "
                f"{_first(self.names[wrong])}"
            )


def _first(names: NDArray[np.str_]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED].tolist()) + more
