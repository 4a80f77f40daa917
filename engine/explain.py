"""What a network looked at in its clips: class activation, attention, recoupling weights.

All of it is taken from the network's own modules while it makes one forward pass. Pictures of it:
engine/explanation_figure.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.decoupled import DecoupledNetwork
from models.output import ModelOutput
from models.recoupling import Recoupling
from models.staged import StageRecoupling
from models.temporal import KnnAttention, TemporalBranch
from models.umdr import UmdrNetwork
from pipelines.batch import Batch

STAGES = (("inception5c", 32), ("inception4c", 16), ("inception3c", 8))
"""Spatial features that class activation can be taken of, deepest first, and their stride."""

LEAST_CELLS = 4
"""Cells per side below which a map says too little about where: small clips take earlier stages."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Attention:
    """Attention of one branch's class token in its last block, mean over heads."""

    frames: NDArray[np.int64]
    """(f,) which of the clip's T frames the branch sees."""

    weights: Floats
    """(f,) share of each of them."""

    on_itself: float
    """What is left, on the class token itself: together they are 1."""


@dataclass(frozen=True)
class Explanation:
    """What one modality of one clip contributed, and when."""

    modality: str
    frames: NDArray[np.uint8]
    """(T, H, W, 3) pixels as the network sees them."""

    motion: Floats | None
    """(T, H, W) motion maps, 0 to 2."""

    activation: Floats
    """(T, h, w) evidence for the class per cell of the last spatial features, 0 or more: features
    times their gradient, summed over channels, negative sums cut (Grad-CAM with local weights)."""

    stage: str
    """Which features those are."""

    attention: tuple[Attention, ...]
    """One per branch, fewest frames first."""

    frame_weight: Floats | None
    """(T,) recoupling weight of each frame, 0 to 1."""

    channel_weight: Floats | None
    """(D,) recoupling weight of each channel, 0 to 1; UMDR's are weighted frame by frame only."""


class Recording:
    """While it is open, keeps what `explanations` needs of the network's next forward pass.

    The pass itself computes what it always does. Memory stays small: gradients begin at the
    recorded features, so the stages before them keep nothing.
    """

    def __init__(self, network: nn.Module, modality: str, size: int) -> None:
        """A network of one `modality`, or one with a submodule for each, for clips of height and
        width `size`. Raises ValueError where none of them is CVPR'22's or UMDR's network."""
        self.parts = {
            name or modality: part
            for name, part in (("", network), *network.named_children())
            if isinstance(part, (DecoupledNetwork, UmdrNetwork))
        }
        if not self.parts:
            name = getattr(network, "name", type(network).__name__)
            raise ValueError(f"no explanation is known for {name}, only for CVPR'22's and UMDR's")
        fitting = [stage for stage, stride in STAGES if size // stride >= LEAST_CELLS]
        self.stage = fitting[0] if fitting else STAGES[-1][0]
        self._seen: dict[tuple[str, str | int], Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> "Recording":
        for name, part in self.parts.items():
            features = getattr(part.spatial, self.stage)
            self._hooks.append(features.register_forward_hook(self._leaf(name)))
            for k, branch in enumerate(part.branches):
                self._keep_input(_last_attention(branch), name, k)
            recoupling = _recoupling(part)
            if recoupling is not None:
                self._keep_input(recoupling, name, "recoupling")
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def explanations(
        self, batch: Batch, output: ModelOutput, classes: Tensor
    ) -> list[list[Explanation]]:
        """Why the clips of the batch (B) look like the given classes (B,): per clip one explanation
        per modality. `output` is that of the recorded pass, made with gradients enabled."""
        # The merged logits of the unimodal network are those of one branch, and would show only the
        # frames that this branch happens to see; for RGB-D this sum is the prediction.
        heads = torch.stack((output.logits, *output.branch_logits)).float().sum(0)
        score = heads.gather(1, classes[:, None]).sum()
        features = [self._seen[name, "features"] for name in self.parts]
        gradients = torch.autograd.grad(score, features)
        by_part = []
        for i, (name, gradient) in enumerate(zip(self.parts, gradients, strict=True)):
            evidence = (features[i].detach() * gradient).float().sum(1).relu()
            evidence = evidence.unflatten(0, (len(batch.label), -1))  # (B, T, h, w)
            by_part.append(self._of_part(name, batch, i, evidence))
        return [list(clip) for clip in zip(*by_part, strict=True)]

    @torch.no_grad()
    def _of_part(self, name: str, batch: Batch, i: int, evidence: Tensor) -> list[Explanation]:
        """The explanation of each clip by modality `name`, the batch's `i`-th."""
        clip = batch.clip[i] if isinstance(batch.clip, tuple) else batch.clip
        motion = batch.motion[i] if isinstance(batch.motion, tuple) else batch.motion
        pixels = (clip.float() * 128 + 127.5).round().byte().permute(0, 2, 3, 4, 1)
        attention = self._attention(name, batch.branch_indices)
        recoupling, frame_weight, channel_weight = _recoupling(self.parts[name]), None, None
        if recoupling is not None:
            seen = self._seen[name, "recoupling"]
            frame_weight = recoupling.frame_weight(seen)
            if isinstance(recoupling, Recoupling):
                channel_weight = recoupling.channel_weight(seen)
        return [
            Explanation(
                modality=name,
                frames=pixels[b].cpu().numpy(),
                motion=None if motion is None else _floats(motion[b, 0]),
                activation=_floats(evidence[b]),
                stage=self.stage,
                attention=attention[b],
                frame_weight=None if frame_weight is None else _floats(frame_weight[b]),
                channel_weight=None if channel_weight is None else _floats(channel_weight[b]),
            )
            for b in range(len(pixels))
        ]

    def _attention(self, name: str, indices: Sequence[Tensor]) -> list[tuple[Attention, ...]]:
        """Per clip that of each branch, which sees the frames `indices` (B, f)."""
        by_branch = []
        for k, (branch, frames) in enumerate(zip(self.parts[name].branches, indices, strict=True)):
            # (B, heads, queries, keys), of which the class token is the first query
            weights = _last_attention(branch).weights(self._seen[name, k])[:, :, 0].mean(1)
            rows = zip(frames.cpu().numpy(), _floats(weights), strict=True)
            by_branch.append([Attention(seen, row[1:], float(row[0])) for seen, row in rows])
        return list(zip(*by_branch, strict=True))

    def _leaf(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
            leaf = features.detach().requires_grad_()
            self._seen[name, "features"] = leaf
            return leaf

        return hook

    def _keep_input(self, module: nn.Module, name: str, key: str | int) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Outside of mixed precision the module takes its own type only.
            self._seen[name, key] = inputs[0].detach().to(next(module.parameters()).dtype)

        self._hooks.append(module.register_forward_pre_hook(hook))


def _recoupling(part: nn.Module) -> Recoupling | StageRecoupling | None:
    """The recoupling module of a network, of UMDR's the last."""
    if isinstance(part, UmdrNetwork):
        last = part.spatial.recouplings[-1]
        assert isinstance(last, StageRecoupling)
        return last
    assert isinstance(part, DecoupledNetwork)
    return part.recoupling


def _floats(tensor: Tensor) -> Floats:
    return tensor.float().cpu().numpy()


def _last_attention(branch: nn.Module) -> KnnAttention:
    """The attention of the branch's last block."""
    assert isinstance(branch, TemporalBranch)
    attention = branch.blocks[-1].attention
    assert isinstance(attention, KnnAttention)
    return attention
