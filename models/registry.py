"""Networks by name. The explicit table below is the whole mechanism: nothing registers itself."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from models.decoupled import DecoupledNetwork
from models.fusion import FusionNetwork
from models.umdr import UmdrNetwork
from models.umdr_fusion import UmdrFusionNetwork
from models.video_networks import mvit_v2_s, r3d_18, swin3d_t

MODELS: dict[str, Callable[..., nn.Module]] = {
    "decoupled": DecoupledNetwork,
    "decoupled_fusion": FusionNetwork,
    "umdr": UmdrNetwork,
    "umdr_fusion": UmdrFusionNetwork,
    "r3d_18": r3d_18,
    "mvit_v2_s": mvit_v2_s,
    "swin3d_t": swin3d_t,
}


def build_model(name: str, **options: Any) -> nn.Module:
    """The network called `name`, with its constructor's keyword options.

    Raises ValueError for an unknown name or option, a missing option, or an impossible value.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{_hint(name, MODELS)}")
    parameters = inspect.signature(MODELS[name]).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(
                f"model {name!r}: unknown option {option!r}{_hint(option, parameters)}"
            )
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ValueError(f"model {name!r}: option {parameter.name!r} is missing")
    return MODELS[name](**options)


def _hint(word: str, known: Iterable[str]) -> str:
    closest = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean {closest[0]!r}?" if closest else f"; known are {', '.join(known)}"
