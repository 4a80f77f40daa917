"""A run's config: one YAML file plus dotted overrides -> frozen dataclasses, or one line that says
what is wrong with which key of which file. Reads no data and builds no model."""

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from engine import published_config
from engine.losses import LossConfig
from engine.optim import OptimConfig
from engine.tracing import window
from models.registry import MODELS, build_model
from models.video_networks import PUBLISHED
from pipelines.config import DataConfig
from pipelines.typed import convert, suggest, unknown_choice

FROM_DATA = ("num_classes", "num_frames", "branch_frames", "size")
"""Model options that follow from the data section, so that the two can never disagree."""

DECOUPLED = ("decoupled", "decoupled_fusion")
"""The networks of CVPR'22."""

NETWORK_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "decoupled_fusion": {
        "data": {"modality": "rgbd"},
        "loss": {"branch_weight": 1.0, "recoupling_delay": 0},
        "train": {"temperature": [1.0, 1.0]},
    },
    **{
        name: {
            "data": {
                "num_frames": clips.num_frames,
                "resize": [clips.size * 8 // 7] * 2,
                "crop": clips.size,
                "size": clips.size,
                "branch_frames": [],
                "motion_window": 0,
            },
            "train": {"temperature": [1.0, 1.0]},
        }
        for name, clips in PUBLISHED.items()
    },
}
"""Where a network was published with other values than the dataclasses' defaults."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and its options: the keyword arguments of its builder."""

    name: str = "decoupled"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how exact, and where the results go."""

    run_dir: str
    """Everything a run writes is below it; the same command again resumes from it."""

    epochs: int = 100
    global_batch: int = 48
    """Clips per optimizer step over all ranks."""

    eval_batch: int = 8
    """Clips per evaluation batch of one rank; changes no result."""

    init_from: str = ""
    """A checkpoint, ours or published, whose weights a new run starts from; only a classifier of
    another size is left out. A resumed run does not read it again."""

    init_rgb: str = ""
    """As `init_from`, of an RGB network without its heads, for that half of the fusion network."""

    init_depth: str = ""
    """As `init_rgb`, for the depth half."""

    seed: int = 0
    device: str = "auto"
    """`cuda`, `cpu`, or `auto`: the GPU where there is one."""

    precision: str = "auto"
    """`bf16`, `fp16` (with a loss scaler), `fp32`, `fp64`, or `auto`: bf16 on GPUs that have it,
    fp16 on those that do not, fp32 on the CPU."""

    compile: str = "auto"
    """torch.compile of the network: `on`, `off`, or `auto`: on GPUs, off on the CPU
    (benchmarks/README.md). Where it cannot be done, the run says why and goes on without."""

    temperature: tuple[float, float] = (0.04, 0.07)
    """What the logits are divided by: first and last value of the published linear schedule."""

    temperature_epochs: int = 30
    save_every: int = 0
    """Steps between saves of `last.pt`; it is saved at each epoch's end in any case."""

    keep: int = 3
    """Checkpoints of the latest saves that are kept, the last one included: where it is damaged,
    the run goes on from the one before."""

    log_every: int = 10
    """Steps between log lines: the loop waits for the device once per line."""

    timeout_s: float = 600.0
    """Seconds after which a run without progress ends with the name of the rank that hangs
    (engine/watchdog.py); 0: never."""

    profile: str = ""
    """`START:STOP`: a profiler's trace of the steps START to STOP - 1, numbered as in log lines."""

    flop_use: bool = True
    """Log the share of the device's rate of matrix products that training uses; measured at the
    start, in a second."""

    on_nan: str = "stop"
    """Where a step's loss or gradients are not finite: `stop` the run with the names of its clips,
    or `skip` its update, and count it; twenty in a row stop the run."""

    max_loss: float = 0.0
    """A step with a larger loss stops the run with the names of its clips; 0: none does."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it) of every impossible value."""
        for key in (
            "epochs", "global_batch", "eval_batch", "temperature_epochs", "keep", "log_every"
        ):  # fmt: skip
            if getattr(self, key) < 1:
                yield key, f"is {getattr(self, key)}; it must be at least 1"
        if self.save_every < 0:
            yield "save_every", "is negative; 0 saves at each epoch's end only"
        if self.timeout_s < 0:
            yield "timeout_s", "is negative; 0 turns it off"
        if self.max_loss < 0:
            yield "max_loss", "is negative; 0 lets every loss pass"
        try:
            window(self.profile)
        except ValueError as error:
            yield "profile", str(error)
        if self.seed < 0:
            yield "seed", "is negative; it must be 0 or more"
        if min(self.temperature) <= 0:
            yield "temperature", "holds a value that is not positive; [1, 1] turns it off"
        for key, choices in (
            ("device", ("auto", "cpu", "cuda")),
            ("precision", ("auto", "bf16", "fp16", "fp32", "fp64")),
            ("compile", ("auto", "on", "off")),
            ("on_nan", ("stop", "skip")),
        ):
            if getattr(self, key) not in choices:
                yield key, unknown_choice(getattr(self, key), choices)
        if self.init_from and (self.init_rgb or self.init_depth):
            yield "init_from", "fills the whole network, init_rgb and init_depth its halves: choose"


@dataclass(frozen=True)
class Config:
    """One run."""

    data: DataConfig
    train: TrainConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The config of a YAML file with `section.key=value` overrides; checked, no data read.

    A published YAML file is translated first (engine/published_config.py); overrides name our keys.

    Raises ValueError with one line per problem, each naming the file (or the command line), the
    section, the key and what to write instead.
    """
    tree = _read_yaml(path)
    if published_config.is_published(tree):
        tree = published_config.read(tree, str(path))
    return from_tree(tree, str(path), overrides)


def from_tree(tree: dict[str, Any], where: str, overrides: Iterable[str] = ()) -> Config:
    """As `load`, of sections that are already parsed, such as those kept in the checkpoint `where`.

    `tree` stays as it is.
    """
    tree = dict(tree)
    for override in overrides:
        _apply(tree, override)
    model = _model(tree.pop("model", {}), where)
    for section, values in NETWORK_DEFAULTS.get(model.name, {}).items():
        if isinstance(tree.get(section), dict):  # whatever else it is, is reported below
            tree[section] = values | tree[section]
        else:
            tree.setdefault(section, dict(values))
    config = dataclasses.replace(convert(tree, Config, where), model=model)
    problems = list(_problems(config)) or list(_model_problems(config))
    if problems:
        raise ValueError("\n".join(f"{where}: {section}: {text}" for section, text in problems))
    return config


def model_options(config: Config) -> dict[str, Any]:
    """Keyword arguments for `models.build_model(config.model.name, ...)`."""
    accepted = inspect.signature(MODELS[config.model.name]).parameters
    shared = {key: getattr(config.data, key) for key in FROM_DATA if key in accepted}
    return shared | config.model.options


def with_options(config: Config, **options: Any) -> Config:
    """The config with other model options."""
    model = dataclasses.replace(config.model, options=config.model.options | options)
    return dataclasses.replace(config, model=model)


def as_dict(config: Config) -> dict[str, Any]:
    """Plain dictionaries, lists and values: what is saved beside a run and read back by `load`."""
    tree = _plain(dataclasses.asdict(config))
    tree["model"] = {"name": tree["model"]["name"], **tree["model"]["options"]}
    return tree


class _Loader(yaml.SafeLoader):
    """Reads 10:20 as text. YAML 1.1 has it be a number of base 60, 620."""

    def whole_number(self, node: yaml.ScalarNode) -> int | str:
        """As YAML's, but for colons."""
        return node.value if ":" in node.value else self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def _read_yaml(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        others = sorted(str(p) for p in Path(path).parent.glob("*.yaml"))
        raise ValueError(f"{path}: no such config file{suggest(str(path), others)}")
    try:
        tree = yaml.load(Path(path).read_text(), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected sections such as 'data:' and 'train:', found {tree!r}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the parsed file."""
    path, sign, text = override.partition("=")
    keys = path.split(".")
    if not sign or len(keys) < 2 or not all(keys):
        raise ValueError(f"command line: {override!r} is not of the form section.key=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ValueError(f"command line: the value of {override!r} is not valid YAML") from None
    for key in keys[:-1]:
        child = tree.get(key)
        tree[key] = dict(child) if isinstance(child, dict) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _model(section: Any, where: str) -> ModelConfig:
    """The model section: `name` plus keyword arguments of that network's builder, typed by it."""
    where = f"{where}: model"
    if not isinstance(section, dict):
        raise ValueError(f"{where}: expected keys and values, found {section!r}")
    options = dict(section)
    name = options.pop("name", ModelConfig.name)
    if name not in MODELS:
        raise ValueError(f"{where}: name {unknown_choice(name, MODELS)}")
    builder = MODELS[name]
    target = builder.__init__ if inspect.isclass(builder) else builder
    hints = typing.get_type_hints(target)
    accepted = [key for key in inspect.signature(builder).parameters if key not in FROM_DATA]
    for key, value in options.items():
        if key in FROM_DATA:
            raise ValueError(f"{where}: {key!r} belongs in the data section: data.{key}")
        if key not in accepted:
            raise ValueError(f"{where}: unknown key {key!r}{suggest(key, accepted)}")
        options[key] = convert(value, hints.get(key, Any), f"{where}: {key}")
    return ModelConfig(name, options)


def _problems(config: Config) -> Iterator[tuple[str, str]]:
    """(section, `key message`) of every value that cannot be, alone or beside the others."""
    for section in ("data", "loss", "optim", "train"):
        for key, text in getattr(config, section).problems():
            yield section, f"{key} {text}"
    halves = [key for key in ("init_rgb", "init_depth") if getattr(config.train, key)]
    if halves and config.model.name != "decoupled_fusion":
        yield "train", f"{halves[0]} is for decoupled_fusion; set init_from for {config.model.name}"
    if config.model.name in DECOUPLED:
        yield from (("data", text) for text in _decoupled_problems(config))
    else:
        yield from (("data", text) for text in _video_problems(config))


def _model_problems(config: Config) -> Iterator[tuple[str, str]]:
    """What the network's builder refuses; asked on the meta device, where building costs little."""
    try:
        with torch.device("meta"):
            build_model(config.model.name, **model_options(config))
    except ValueError as error:
        yield "model", str(error)


def _decoupled_problems(config: Config) -> Iterator[str]:
    """What the CVPR'22 networks ask of their clips."""
    data = config.data
    fusion = config.model.name == "decoupled_fusion"
    if fusion != (data.modality == "rgbd"):
        other = "decoupled" if fusion else "decoupled_fusion"
        yield (
            f"modality is {data.modality}, but model.name {config.model.name} takes "
            f"{'rgbd' if fusion else 'rgb or depth'}; set it so, or model.name to {other}"
        )
    if not data.branch_frames:
        yield "branch_frames needs one positive number of frames per temporal branch"
    longest = max(data.branch_frames, default=0)
    if longest > data.num_frames:
        yield f"branch_frames holds {longest}, more than num_frames = {data.num_frames}"
    if config.model.options.get("motion_attention", True):
        if data.size % 32:
            below = max(data.size // 32 * 32, 32)
            yield (
                f"size is {data.size}, no multiple of 32, which the motion attention needs; "
                f"take {below} or {below + 32}"
            )
        if not data.motion_window:
            yield (
                "motion_window is 0, but this network's motion attention needs the maps; set it "
                "to 10, or model.motion_attention to false"
            )


def _video_problems(config: Config) -> Iterator[str]:
    """What torchvision's networks ask of their clips."""
    data, name = config.data, config.model.name
    if data.modality == "rgbd":
        yield (
            f"modality is rgbd, but model.name {name} takes rgb or depth; train one network of "
            "each, and fuse their scores by engine/fuse_scores.py"
        )
    if data.motion_window:
        yield (
            f"motion_window is {data.motion_window}, but model.name {name} takes no motion maps; "
            "set it to 0"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
