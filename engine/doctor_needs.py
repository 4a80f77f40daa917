"""What a run's config asks of this machine: precision, memory, disk, and how the first clip is
encoded. Runs in a child process of the doctor; `engine/train.py --dry-run` looks at all clips."""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.clips import check_batch
from engine.config import Config, load, model_options
from engine.distributed import Ranks
from engine.dry_run import memory, starting_weights
from engine.loop import Precision
from models.registry import build_model
from pipelines.config import DataConfig
from pipelines.finding import find_media, present_sources
from pipelines.index import read_names
from pipelines.media import Media, PackedFrames, PackedVideo, VideoFile
from pipelines.pack_reader import find_shards

Say = Callable[..., None]


def probe_config(say: Say, path: str, num_ranks: str, *overrides: str) -> None:
    """Says each need by itself: what is wrong with one hides no other. `num_ranks` 0: one per GPU,
    or one on the CPU."""
    say(doing=f"reading {path}")
    config = load(path, overrides)
    train, data = config.train, config.data
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = "cuda" if train.device == "cuda" or (train.device == "auto" and usable) else "cpu"
    say(
        wanted=train.device, device=device, model=config.model.name, optimizer=config.optim.name,
        compile=train.compile, deterministic=train.deterministic, modality=data.modality,
        cache=data.cache, cache_gb=data.cache_gb, workers=data.workers,
        run_dir=os.path.abspath(train.run_dir), cache_dir=data.cache_dir,
        root=os.path.abspath(os.path.expanduser(data.root)),
    )  # fmt: skip
    ranks_total = int(num_ranks) or int(os.environ.get("WORLD_SIZE", 0)) or max(
        usable if device == "cuda" else 1, 1
    )  # fmt: skip
    ranks = Ranks(0, 0, ranks_total, torch.device(device))
    say(ranks=ranks_total)
    for key, need in (
        ("batch", lambda: check_batch(config, ranks)),
        ("data", lambda: _data(say, data)),
        ("weights", lambda: starting_weights(config)),
        ("memory", lambda: _memory(say, config, ranks)),
    ):  # fmt: skip
        say(doing=f"looking at the config's {key}")
        try:
            need()
            say(**{f"{key}_problem": ""})
        except (ValueError, OSError) as error:
            say(**{f"{key}_problem": str(error)})


def _data(say: Say, data: DataConfig) -> None:
    """Source and encodings of the first clip of either list."""
    root = os.path.expanduser(data.root)
    if not os.path.isdir(root):
        raise ValueError(f"{root}: no such folder; set data.root to the data set's")
    say(shards=len(find_shards(Path(root))))
    for which in ("train", "eval"):
        names = read_names(data, which)
        if not names:
            raise ValueError(f"{root}: data.{which}_list holds no clip")
        present = present_sources(data, root, names[0])
        source = data.source if data.source != "auto" else next(iter(present), "frames")
        # A folder of its own: the doctor leaves nothing in the data set's.
        with tempfile.TemporaryDirectory() as folder:
            look = replace(data, source=source, cache_dir=folder)
            found = find_media(look, root, names[:1], lambda text: None)
        errors = [item.error for item in found.values() if item.error]
        if errors:
            raise ValueError(errors[0])
        kinds = [_kind(item.media) for item in found.values() if item.media]
        say(**{which: {"clips": len(names), "source": source, "kinds": kinds}})


def _kind(media: Media) -> dict[str, Any]:
    """Codec of a video, or encoding of a packed frame, or `image`."""
    if isinstance(media, (VideoFile, PackedVideo)):
        return {"kind": media.info.codec, "video": True}
    kind = media.info.encoding if isinstance(media, PackedFrames) else "image"
    return {"kind": kind, "video": False}


def _memory(say: Say, config: Config, ranks: Ranks) -> None:
    """The dry run's estimate, and the size of a checkpoint."""
    with torch.device("meta"):
        network = build_model(config.model.name, **model_options(config))
    weights = sum(p.numel() for p in network.parameters())
    moments = 1 if config.optim.name == "sgd" else 2
    precision = config.train.precision
    if ranks.device.type == "cuda" and not torch.cuda.is_available():
        precision = "fp32" if precision == "auto" else precision
        ranks = replace(ranks, device=torch.device("cpu"))  # counted on shapes alone
    chosen = Precision.choose(precision, ranks.device)
    say(
        precision=str(chosen.compute).removeprefix("torch."),
        checkpoint_bytes=weights * (1 + moments) * chosen.weights.itemsize,
    )
    text = memory(config, ranks, chosen)
    # The sentence is the dry run's, which knows what a rank takes at a time.
    figures = re.search(r"([\d.]+) GiB = .* activations of (\d+) clips", text)
    assert figures, text
    say(memory=text, memory_bytes=float(figures[1]) * 2**30, clips=int(figures[2]))
