"""Published checkpoints of UMDR's fusion, which hold only what completes two networks: joined with
these, and told from whole ones. Dictionaries; files are engine/checkpoint.py's."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from engine.config import FROM_DATA
from engine.published_checkpoint import described_network
from models.upstream import published_names, published_options


def is_part(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint in our form lacks the two networks."""
    names = state.get("model", ())
    return bool(names) and all(name.startswith("complement.") for name in names)


def joined(
    part: Mapping[str, Any], rgb: Mapping[str, Any], depth: Mapping[str, Any]
) -> dict[str, Any]:
    """`part` (see `is_part`) and the networks that it completes, all in our form -> a whole
    checkpoint, of which engine/published_checkpoint.py makes `part` again. Tensors are shared.

    Raises ValueError naming the modality and the option in which they do not fit.
    """
    own = part["config"]["data"] | part["config"]["model"]
    model: OrderedDict[str, Any] = OrderedDict()
    options: dict[str, Any] = {}
    for modality, half in (("rgb", rgb), ("depth", depth)):
        if half["config"].get("model", {}).get("name") != "umdr":
            raise ValueError(f"the {modality} network is none of UMDR's")
        weights = half.get("ema", half["model"])
        found = _options(half, weights)
        for key, value in found.items():
            wanted = (options | own).get(key, value)
            if value != wanted:
                raise ValueError(f"the {modality} network has {key} = {value}, not {wanted}")
        options |= found
        model |= {f"{modality}.{key}": tensor for key, tensor in weights.items()}
    data = {key: options.pop(key) for key in FROM_DATA if key in options}
    return {
        **part,
        "config": {"data": data, "model": options | part["config"]["model"]},
        "model": model | part["model"],
    }


def _options(half: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """All that its shapes tell, and what its config tells beside."""
    names = published_names(described_network(half["config"]))
    _, told = published_options({names[key]: tensor for key, tensor in weights.items()})
    return {k: v for k, v in half["config"]["model"].items() if k != "name"} | told
