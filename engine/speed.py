"""What log lines say of speed, memory and the use of the device. Measured elsewhere, by timing.py
and flops.py."""

from typing import Any

import torch

from engine.config import Config
from engine.distributed import Ranks
from engine.flops import clip_flop, matrix_rate
from engine.loop import Precision
from engine.timing import PARTS
from pipelines.batch import Batch

GIBIBYTE = 2**30

SHORT = {"data": "data", "forward": "fwd", "backward": "bwd", "sync": "sync", "optimizer": "opt"}
"""Names of a step's parts in the progress bar."""


class Speed:
    """Turns seconds of a step's parts into the figures of a log line."""

    def __init__(self, ranks: Ranks, global_batch: int):
        self.ranks = ranks
        self.global_batch = global_batch
        self.clip_flop = 0.0
        self.peak = 0.0
        """FLOP/s of a large product of matrices, all ranks together."""

    def prepare(self, config: Config, batch: Batch, precision: Precision) -> str:
        """Count a clip's operations, measure what the devices could do; to be said at the start."""
        try:
            self.clip_flop = clip_flop(config, batch)
        # Whatever an operator lacks on the meta device: the figure is a convenience.
        except (RuntimeError, NotImplementedError) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            return f"flop_use is not logged: this network's shapes alone do not run ({problem})"
        device, dtype = self.ranks.device, precision.compute
        self.peak = sum(self.ranks.gather(matrix_rate(device, dtype)))
        if device.type == "cuda":  # the matrices are not the training's
            torch.cuda.reset_peak_memory_stats(device)
        name = str(dtype).removeprefix("torch.")
        return (
            f"a training step takes {self.clip_flop / 1e9:.4g} GFLOP per clip; matrices are "
            f"multiplied in {name} at {self.peak / 1e12:.3g} TFLOP/s"
        )

    def figures(self, seconds: dict[str, float], steps: int) -> dict[str, float]:
        """Of `steps` steps whose parts took `seconds` on this rank -> means over the ranks, per
        step; to be called by all of them. README says what the names mean."""
        every = self.ranks.gather((seconds, *_memory(self.ranks.device)))
        parts = [part for part in PARTS if any(part in rank[0] for rank in every)]
        means = {
            part: sum(rank[0].get(part, 0.0) for rank in every) / len(every) / steps
            for part in parts
        }
        total = max(sum(means.values()), 1e-9)
        waits = [rank[0].get("data", 0.0) / max(sum(rank[0].values()), 1e-9) for rank in every]
        found = {
            "clips_per_s": self.global_batch / total,
            "clips_per_s_per_rank": self.global_batch / total / len(every),
            "data_wait": means.get("data", 0.0) / total,
            "data_wait_max": max(waits),
            "step_s": total,
            **{f"{part}_s": value for part, value in means.items()},
        }
        if self.ranks.device.type == "cuda":
            found["gpu_allocated_gib"] = max(rank[1] for rank in every) / GIBIBYTE
            found["gpu_used_gib"] = max(rank[2] for rank in every) / GIBIBYTE
        if self.peak:
            found["flop_use"] = found["clips_per_s"] * self.clip_flop / self.peak
        return found


def bar_text(line: dict[str, Any], ranks: Ranks) -> str:
    """A log line's values, as the progress bar shows them."""
    per_rank = f" ({ranks.world_size} x {line['clips_per_s_per_rank']:.4g})"
    parts = [
        f"{short} {line[f'{part}_s'] / line['step_s']:.0%}"
        for part, short in SHORT.items()
        if f"{part}_s" in line
    ]
    texts = [
        f"loss {line.get('loss', float('nan')):.3f}",
        f"top-1 {line.get('top1', 0):.1%}",
        f"lr {line['lr']:.2g}",
        f"{line['clips_per_s']:.4g} clips/s{per_rank if ranks.world_size > 1 else ''}",
        *parts,
    ]
    if line.get("skipped"):
        texts.append(f"{line['skipped']} skipped")
    if "gpu_used_gib" in line:
        texts.append(f"{line['gpu_used_gib']:.3g} GiB")
    if "flop_use" in line:
        texts.append(f"{line['flop_use']:.0%} of FLOP/s")
    return ", ".join(texts)


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU: the most that torch's tensors took, and what is in use now, by all, DALI and
    other programs included."""
    if device.type != "cuda":
        return 0, 0
    free, total = torch.cuda.mem_get_info(device)
    return torch.cuda.max_memory_allocated(device), total - free
