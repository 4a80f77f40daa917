"""What is counted while training and evaluating. Sums stay on the device until they are read."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from engine.distributed import Ranks

T = TypeVar("T")

CLIPS = "clips"
"""Name of the number of clips among an average's sums."""


class Average:
    """Means of named per-clip values over the clips of all ranks.

    Adding touches this rank's sums only and never waits for the device; reading waits for it and
    for the other ranks, so all of them read at the same moment.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.names: tuple[str, ...] = ()
        # float64: the sum of an epoch's losses must not depend on how often it is read or saved.
        self.sums = torch.zeros(0, dtype=torch.float64, device=ranks.device)

    def add(self, clips: int, **means: Tensor) -> None:
        """Add means over `clips` clips of this rank; the same names on every rank. Where one is not
        finite these clips do not count: a single such step would be all there is to read."""
        device = self.ranks.device
        one = torch.ones((), device=device)
        values = torch.stack([
            mean.detach().to(device, torch.float64) for mean in (*means.values(), one)
        ])  # fmt: skip
        values = torch.where(values.isfinite().all(), values, 0.0) * clips
        names = (*means, CLIPS)
        assert self.names in ((), names), "the same means at every step"
        self.sums = self.sums + values if self.names else values
        self.names = names

    def read(self) -> dict[str, float]:
        """The means so far over all ranks."""
        return self.read_with(self.sums.new_zeros(0))[0]

    def read_with(self, more: Tensor) -> tuple[dict[str, float], list[float]]:
        """The same, and the values of `more` (N,), by one wait for the device."""
        totals, values = self._totals_with(more)
        clips = totals.pop(CLIPS, 0.0)
        return {name: total / clips for name, total in totals.items() if clips}, values

    def totals(self) -> dict[str, float]:
        """The sums over all ranks: what travels in a checkpoint."""
        return self._totals_with(self.sums.new_zeros(0))[0]

    def _totals_with(self, more: Tensor) -> tuple[dict[str, float], list[float]]:
        # `more` comes summed where it must be: what is summed here, and in which order, must not
        # depend on how many numbers travel with it.
        sums = self.ranks.sum(self.sums.clone()) if self.names else self.sums
        values = torch.cat([sums, more.double()]).tolist()
        count = len(self.names)
        return dict(zip(self.names, values[:count], strict=True)), values[count:]

    def resume(self, totals: dict[str, float]) -> None:
        """Continue from `totals`, on any number of ranks: the first one takes them all."""
        share = 1.0 if self.ranks.is_main else 0.0
        self.names = tuple(totals)
        self.sums = torch.tensor(
            [total * share for total in totals.values()],
            dtype=torch.float64, device=self.ranks.device,
        )  # fmt: skip


class Scores:
    """Hits of every head and the confusion matrix of the merged logits, over clips seen once."""

    def __init__(self, heads: Iterable[str], num_classes: int, device: torch.device):
        self.heads = tuple(heads)
        self.num_classes = num_classes
        self.top_k = min(5, num_classes)
        size = len(self.heads) * 2
        self.hits = torch.zeros(size, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=device)

    def add(self, logits: Iterable[Tensor], label: Tensor, loss: Tensor) -> None:
        """Logits (B, K) of each head, merged first; label (B,); loss summed over the clips."""
        hits, merged = [], None
        for head in logits:
            ranked = head.topk(self.top_k, dim=1).indices
            merged = ranked[:, 0] if merged is None else merged
            match = ranked == label[:, None]
            hits += [match[:, 0].sum(), match.sum()]
        assert merged is not None and len(hits) == self.hits.numel()
        self.hits += torch.stack(hits)
        self.loss += loss.double()
        cell = label * self.num_classes + merged
        self.confusion += torch.bincount(cell, minlength=self.num_classes**2)

    def tensors(self) -> tuple[Tensor, ...]:
        """The sums, to be added up over ranks in place."""
        return self.hits, self.loss, self.confusion

    def table(self) -> dict[str, Any]:
        """Plain values: `clips`, `loss`, `top1` and `top5` of the merged logits, both per head,
        `per_class` accuracy and the `confusion` matrix [label][prediction]; accuracies in 0..1."""
        confusion = self.confusion.view(self.num_classes, self.num_classes).cpu()
        clips = int(confusion.sum())
        shares = (self.hits.double() / max(clips, 1)).view(-1, 2).tolist()
        heads = {
            name: {"top1": top1, "top5": top5}
            for name, (top1, top5) in zip(self.heads, shares, strict=True)
        }
        support = confusion.sum(1)
        per_class = confusion.diag().double() / support.clamp(min=1)
        return {
            "clips": clips,
            "loss": float(self.loss) / max(clips, 1),
            **heads[self.heads[0]],
            "heads": heads,
            "per_class": [
                accuracy if count else None
                for accuracy, count in zip(per_class.tolist(), support.tolist(), strict=True)
            ],
            "confusion": confusion.tolist(),
        }


class Stopwatch:
    """How long loops ran and how much of that went into waiting for their items, in seconds."""

    def __init__(self) -> None:
        self.finished = 0.0
        self.waited = 0.0
        """Added by whoever measures it: on a GPU the clock of Python does not."""

        self._since: float | None = None

    def watch(self, items: Iterator[T]) -> Iterator[T]:
        """The same items; the time from the first request to the end counts as running."""
        self._since = time.perf_counter()
        yield from items
        self.finished, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Time in loops so far, the one that is running included."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self.finished + running

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, float]:
        """Plain values."""
        return {"seconds": self.seconds, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where `state_dict` was taken."""
        self.finished, self.waited = state["seconds"], state["waited"]


def as_text(table: dict[str, Any]) -> str:
    """The scores as a small table for people: one line per head."""
    lines = [f"{'':<12}{'top-1':>8}{'top-5':>8}    ({table['clips']} clips)"]
    for name, head in table["heads"].items():
        lines.append(f"{name:<12}{head['top1']:>8.1%}{head['top5']:>8.1%}")
    return "\n".join(lines)
