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
from engine.mixing import MixConfig
from engine.optim import OptimConfig
from engine.train_config import TrainConfig
from models.registry import MODELS, build_model
from models.umdr import umdr_branch_frames
from models.video_networks import PUBLISHED
from pipelines.config import DataConfig
from pipelines.typed import convert, suggest, unknown_choice

FROM_DATA = ("num_classes", "num_frames", "branch_frames", "size")
"""Model options that follow from the data section, so that the two can never disagree."""

DECOUPLED = ("decoupled", "decoupled_fusion")
"""The networks of CVPR'22."""

FUSION = {"decoupled_fusion": "decoupled", "umdr_fusion": "umdr"}
"""The networks of both modalities, and those of one that they are made of."""

UMDR_RECIPE: dict[str, dict[str, Any]] = {
    "data": {"num_frames": 32, "motion_window": 0},
    "optim": {
        "nesterov": True,
        "weight_decay": 5e-4,
        "decay_norms": False,
        "schedule": "timm_cosine",
        "warmup": 5,
    },
}
"""What both networks of UMDR were published with. Of the recoupling loss ours is the sum over the
three stages, theirs the mean."""

NETWORK_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "decoupled_fusion": {
        "data": {"modality": "rgbd"},
        "loss": {"branch_weight": 1.0, "recoupling_delay": 0},
        "train": {"temperature": [1.0, 1.0]},
    },
    "umdr": {
        **UMDR_RECIPE,
        "mix": {"mixup": 0.8, "shufflemix": 0.3, "shufflemix_share": 0.2},
        "loss": {
            "recoupling_weight": 0.2,
            "recoupling_temperature": 0.6,
            "recoupling_delay": 6,
            "recoupling_scale": 1 / 3,
        },
    },
    "umdr_fusion": {
        "data": {**UMDR_RECIPE["data"], "modality": "rgbd"},
        "mix": {"mixup": 0.8, "shufflemix": 0.3, "shufflemix_share": 0.2},
        "loss": {"merged_weight": 0.0, "branch_weight": 1.0},
        "optim": {**UMDR_RECIPE["optim"], "schedule": "timm_step"},
        "train": {"temperature": [0.07, 0.07]},
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
class Config:
    """One run."""

    data: DataConfig
    train: TrainConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The config of a YAML file with `section.key=value` overrides; checked, no data read.

    A published YAML file is translated first (engine/published_config.py), seeing the overrides,
    which name our keys.

    Raises ValueError with one line per problem, each naming the file (or the command line), the
    section, the key and what to write instead.
    """
    tree, overrides = _read_yaml(path), list(overrides)
    if published_config.is_published(tree):
        given: dict[str, Any] = {}
        for override in overrides:
            _apply(given, override)
        tree = published_config.read(tree, str(path), given)
    return from_tree(tree, str(path), overrides)


def from_tree(tree: dict[str, Any], where: str, overrides: Iterable[str] = ()) -> Config:
    """As `load`, of sections that are already parsed, such as those kept in the checkpoint `where`.

    `tree` stays as it is.
    """
    tree = dict(tree)
    for override in overrides:
        _apply(tree, override)
    model = _model(tree.pop("model", {}), where)
    for section, values in _defaults(model.name, tree).items():
        if isinstance(tree.get(section), dict):  # whatever else it is, is reported below
            tree[section] = values | tree[section]
        else:
            tree.setdefault(section, dict(values))
    config = dataclasses.replace(convert(tree, Config, where), model=model)
    problems = list(_problems(config)) or list(_model_problems(config))
    if problems:
        raise ValueError("\n".join(f"{where}: {section}: {text}" for section, text in problems))
    return config


def _defaults(network: str, tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of NETWORK_DEFAULTS, and what follows for the network from what the file sets."""
    defaults = NETWORK_DEFAULTS.get(network, {})
    if not network.startswith("umdr"):
        return defaults
    given = tree.get("data")
    frames = (given if isinstance(given, dict) else {}).get("num_frames", 32)
    if not isinstance(frames, int) or frames < 2:  # is reported below
        return defaults
    branches = {"branch_frames": list(umdr_branch_frames(frames))}
    return defaults | {"data": defaults["data"] | branches}


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
    for section in ("data", "mix", "loss", "optim", "train"):
        for key, text in getattr(config, section).problems():
            yield section, f"{key} {text}"
    halves = [key for key in ("init_rgb", "init_depth") if getattr(config.train, key)]
    name = config.model.name
    if config.train.teacher and config.data.modality == "rgbd":
        yield "train", "teacher is for networks of one modality, which learn from the other's"
    if halves and name not in FUSION:
        yield "train", f"{halves[0]} is for {' and '.join(FUSION)}; set init_from for {name}"
    if name in DECOUPLED or name in FUSION or name in FUSION.values():
        yield from (("data", text) for text in _modality_problems(config))
    if name in DECOUPLED:
        yield from (("data", text) for text in _decoupled_problems(config))
    elif name.startswith("umdr"):
        yield from (("data", text) for text in _umdr_problems(config))
    else:
        yield from (("data", text) for text in _video_problems(config))


def _model_problems(config: Config) -> Iterator[tuple[str, str]]:
    """What the network's builder refuses; asked on the meta device, where building costs little."""
    try:
        with torch.device("meta"):
            build_model(config.model.name, **model_options(config))
    except ValueError as error:
        yield "model", str(error)


def _modality_problems(config: Config) -> Iterator[str]:
    """Whether CVPR'22's and UMDR's networks get the modalities they are for, and branches."""
    data, name = config.data, config.model.name
    if (name in FUSION) != (data.modality == "rgbd"):
        others = FUSION | {one: both for both, one in FUSION.items()}
        yield (
            f"modality is {data.modality}, but model.name {name} takes "
            f"{'rgbd' if name in FUSION else 'rgb or depth'}; set it so, or model.name to "
            f"{others[name]}"
        )
    if not data.branch_frames:
        yield "branch_frames needs one positive number of frames per temporal branch"


def _decoupled_problems(config: Config) -> Iterator[str]:
    """What the CVPR'22 networks ask of their clips."""
    data = config.data
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


def _umdr_problems(config: Config) -> Iterator[str]:
    """What UMDR's networks ask of their clips."""
    if config.data.motion_window:
        yield (
            f"motion_window is {config.data.motion_window}, but model.name {config.model.name} "
            "takes no motion maps; set it to 0"
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
