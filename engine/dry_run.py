"""What a run would do: config, clips, schedule, memory, weights it starts from, one batch as a
picture. Trains nothing."""

import sys

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from engine import report
from engine.clips import Clips, check_batch, class_names, open_clips, shares
from engine.config import Config, as_dict, model_options
from engine.determinism import replace_pools
from engine.distributed import Ranks
from engine.initial import initialise
from engine.loop import Precision, predict
from engine.losses import LossConfig, training_loss
from engine.optim import scheduled_lr, temperature_at
from engine.run import RunDirectory
from engine.teacher import Teacher
from models.registry import build_model
from pipelines.batch import Batch, one_or_each
from pipelines.config import DataConfig

SHOWN_EPOCHS = 12


def dry_run(config: Config, ranks: Ranks) -> None:
    """Print the plan of a run on rank 0 and write `contact_sheet.png` into its run directory."""
    precision = Precision.choose(config.train.precision, ranks.device)
    run = RunDirectory(config.train.run_dir)
    ranks.from_main(lambda: run.prepare(config))
    ranks.agree(lambda: check_batch(config, ranks))
    clips = ranks.agree(lambda: open_clips(config, ranks, precision))
    weights = ranks.agree(lambda: [] if run.checkpoints() else starting_weights(config))
    if not ranks.is_main:
        return
    yaml.safe_dump(as_dict(config), sys.stdout, sort_keys=False)
    for text in (clips.counts(), schedule(config, clips), memory(config, ranks, precision)):
        print(f"\n{text}")
    for line in weights:
        print(f"\n{line}")
    batch = next(clips.train_batches(0, 1))
    labels = class_names(config.data)
    names = [
        f"{clips.train.index.clips[i].name}: {labels[label]}"
        for i, label in zip(batch.index.tolist(), batch.label.tolist(), strict=True)
    ]
    sheet = run.path / "contact_sheet.png"
    report.contact_sheet(batch, names, sheet)
    print(f"\none augmented batch with its motion maps: {sheet}")


def starting_weights(config: Config) -> list[str]:
    """Where a new run's weights, and its teacher's, come from. Raises ValueError where they do not
    fit."""
    network = build_model(config.model.name, **model_options(config))
    lines = initialise(network, config)
    if config.train.teacher:
        single = Precision.choose("fp32", torch.device("cpu"))
        lines.append(Teacher(network, config, single).load())
    return lines


def schedule(config: Config, clips: Clips) -> str:
    """Learning rate and temperature of up to SHOWN_EPOCHS epochs, first and last included."""
    train, optim = config.train, config.optim
    steps = clips.steps_before(train.epochs)
    last = train.epochs - 1
    shown = sorted({round(i * last / max(SHOWN_EPOCHS - 1, 1)) for i in range(SHOWN_EPOCHS)})
    lines = [f"{steps} steps of {train.global_batch} clips", "epoch  first step        lr  temp"]
    for epoch in shown:
        first = clips.steps_before(epoch)
        by_step = optim.schedule_by == "step"
        rate = scheduled_lr(optim, *((first, steps) if by_step else (epoch, train.epochs)))
        temperature = temperature_at(epoch, *train.temperature, train.temperature_epochs)
        lines.append(f"{epoch + 1:5d}  {first:10d}  {rate:8.2e}  {temperature:.3f}")
    return "\n".join(lines)


def memory(config: Config, ranks: Ranks, precision: Precision) -> str:
    """Estimate of one rank's memory in a training step: weights, gradients and optimizer, and what
    the forward pass keeps for the backward pass. Counted on shapes alone: nothing is computed."""
    clips = shares(config, ranks).largest_micro_batch
    with torch.device("meta"):  # fake tensors refuse what some networks initialise themselves by
        model = build_model(config.model.name, **model_options(config))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(ranks.device):
        model.to_empty(device=ranks.device)
        replace_pools(model, ranks.device)
        batch = empty_batch(clips, config.data)
        if precision.weights == torch.float64:  # counted in float32, which is half of it
            single = Precision.choose("fp32", ranks.device)
            activations = 2 * kept_bytes(model, batch, config.loss, single)
        else:
            activations = kept_bytes(model, batch, config.loss, precision)
    parameters = sum(p.numel() for p in model.parameters())
    copies = 3 if config.optim.name == "sgd" else 4  # weight, gradient, one or two moments
    copies += (config.train.ema > 0) + bool(config.train.teacher)
    fixed = parameters * copies * precision.weights.itemsize
    total = (fixed + activations) / 2**30
    return (
        f"memory per rank, estimated: {total:.2f} GiB = {parameters / 1e6:.2f} M parameters with "
        f"gradients and optimizer ({fixed / 2**30:.2f} GiB) + activations of {clips} clips "
        f"({activations / 2**30:.2f} GiB)"
    )


def kept_bytes(model: nn.Module, batch: Batch, loss: LossConfig, precision: Precision) -> int:
    """Bytes that forward and loss keep for backward, each storage once, weights not counted."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = predict(model, batch, 1.0, precision)
        # The graph behind `total` keeps all counted storages alive, so no address counts twice.
        total, _ = training_loss(output, batch.label, loss, epoch=0)
    del total
    return sum(kept.values())


def empty_batch(num_clips: int, data: DataConfig) -> Batch:
    """A batch of the loader's shapes without contents, on the default device."""
    frames = (data.num_frames, data.size, data.size)
    clips = tuple(torch.empty(num_clips, 3, *frames) for _ in data.modalities)
    maps = tuple(torch.empty(num_clips, 1, *frames) for _ in data.modalities)
    indices = tuple(torch.zeros(num_clips, f, dtype=torch.int64) for f in data.branch_frames)
    label = torch.zeros(num_clips, dtype=torch.int64)
    motion = one_or_each(maps) if data.motion_window else None
    return Batch(one_or_each(clips), motion, label, indices, label)
