"""Before the first step: is 16-bit arithmetic right on this machine, does compiled code run, in
which order do gradients come?

All are tried on a real batch, and leave the network as it was.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import unwrap
from engine.loop import Precision, predict
from engine.losses import LossConfig, training_loss
from pipelines.batch import Batch

CLIPS = 2
"""Of the batch that is looked at."""

LOSS_TOLERANCE = 0.1
"""Of the 16-bit loss, relative. Where all is right up to 0.026 was seen (a network of width 8)."""

LAYER_TOLERANCE = 0.1
"""Of a layer's 16-bit output and gradients: norm of the error, relative. Rounding makes at most
0.009."""

GRADIENT_NORM = 16.0
"""Of what is sent back through a layer: neither its sums nor most of its entries leave float16."""


class LayerCall(NamedTuple):
    """What went into a layer, in fp32."""

    layer: nn.Module
    input: Tensor


def check_precision(
    network: nn.Module, batch: Batch, loss: LossConfig, precision: Precision
) -> None:
    """Compare the training step in 16 bit with the one in fp32. Raises ValueError naming the layers
    that disagree: some releases of cuDNN compute 16-bit convolutions silently wrong.

    Compared are the loss of two clips and, for every convolution and linear layer, the output and
    the gradients that it gives for the same input and the same noise sent back. (Not the gradients
    of the whole pass: rounding alone turns them by 0.6 of their length in a network just
    initialised, and those of attention's keys nearly cancel out, as each query's add up to zero.)
    Costs about three steps; other precisions pass at once.
    """
    if precision.compute.itemsize != 2:
        return
    batch = batch.part(0, CLIPS)
    single = dataclasses.replace(precision, compute=torch.float32)
    with without_trace(network, dropout=False):
        calls, expected = _record(network, batch, loss, single)
        with torch.no_grad():
            found = step_loss(network, batch, loss, precision).item()
        problems = [text for name in calls for text in _problems(name, calls[name], precision)]
    if not abs(found / expected - 1) <= LOSS_TOLERANCE:  # NaN is no agreement
        problems.append(f"loss {found:.5g} instead of {expected:.5g}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"train.precision: {str(precision.compute).removeprefix('torch.')} disagrees with fp32 "
            f"on this machine (torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}): "
            f"{'; '.join(problems[:3])}{more}. Set train.precision=fp32, or install another torch "
            "(README, Versions)"
        )


def trial(model: nn.Module, batch: Batch, loss: LossConfig, precision: Precision) -> Tensor:
    """Loss of a forward and a backward pass; `model` may be wrapped for several ranks."""
    with without_trace(unwrap(model), dropout=True):
        total = step_loss(model, batch, loss, precision)
        total.backward()
        return total.detach()


def settle_buckets(model: nn.Module, batch: Batch, loss: LossConfig, precision: Precision) -> None:
    """Let DistributedDataParallel sort its gradients before the first step, by a backward pass.

    It sorts them once, as they come, and of three ranks or more in which order a sum is formed
    depends on its place among them: without this the first step of a resumed run would differ in
    its last bits from the same step of an uninterrupted one.
    """
    if isinstance(model, DistributedDataParallel) and dist.get_world_size() > 2:
        trial(model, batch, loss, precision)


@contextmanager
def without_trace(network: nn.Module, *, dropout: bool) -> Iterator[None]:
    """Training mode, with or without dropout; afterwards statistics and modes are as before, and
    gradients gone."""
    modes = {module: module.training for module in network.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    network.train()
    if not dropout:  # nor anything else that draws: of what training changes only batch norms stay
        for module in modes:
            module.training &= isinstance(module, _BatchNorm)  # a frozen half's never are
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)
        network.zero_grad(set_to_none=True)


def _record(
    network: nn.Module, batch: Batch, loss: LossConfig, precision: Precision
) -> tuple[dict[str, LayerCall], float]:
    """A forward pass -> its convolutions and linear layers by name, and the loss."""
    calls: dict[str, LayerCall] = {}

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name] = LayerCall(layer, inputs[0].detach().requires_grad_(inputs[0].requires_grad))

    hooks = [
        module.register_forward_hook(lambda *call, name=name: keep(name, *call))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    total = step_loss(network, batch, loss, precision)
    for hook in hooks:
        hook.remove()
    return calls, total.item()


def _problems(name: str, call: LayerCall, precision: Precision) -> Iterator[str]:
    """What a layer alone does differently in 16 bit."""
    exact = _replay(call)
    with precision.autocast():
        found = _replay(call)
    for key, tensor in exact.items():
        error = (found[key].float() - tensor).norm() / tensor.norm().clamp_min(1e-30)
        if not error.item() <= LAYER_TOLERANCE:  # NaN is no agreement
            yield f"{key} of {name} is off by {error:.0%}"


def _replay(call: LayerCall) -> dict[str, Tensor]:
    """Output and gradients of a layer, but for those of what is frozen."""
    layer, leaf = call
    output = layer(leaf)
    learnt = {"weight gradient": layer.get_parameter("weight"), "input gradient": leaf}
    wanted = {key: tensor for key, tensor in learnt.items() if tensor.requires_grad}
    found = {"output": output.detach()}
    if wanted:
        draw = torch.Generator(output.device).manual_seed(0)
        noise = torch.randn(output.shape, generator=draw, device=output.device)
        sent = (noise * (GRADIENT_NORM / noise.norm())).to(output.dtype)
        gradients = torch.autograd.grad(output, list(wanted.values()), sent)
        found |= dict(zip(wanted, gradients, strict=True))
    return found


def step_loss(model: nn.Module, batch: Batch, loss: LossConfig, precision: Precision) -> Tensor:
    """With every part of it in force, at temperature 1."""
    output = predict(model, batch, 1.0, precision)
    return training_loss(output, batch.label, loss, epoch=loss.recoupling_delay)[0]
