"""What published checkpoints call the parts of each network, in their order of registration."""

from torch import nn

from models.cross_complement import CrossComplement
from models.decoupled import DecoupledNetwork
from models.fusion import FusionNetwork
from models.umdr import UmdrNetwork
from models.umdr_fusion import UmdrFusionNetwork

BRANCHES = ("small", "media", "large")
UNITS = {"conv1": "Conv3d_1a_7x7", "conv2b": "Conv3d_2b_1x1", "conv2c": "Conv3d_2c_3x3"}
UMDR_UNITS = {"conv1": "stem.0", "conv2b": "stem.2", "conv2c": "stem.3"}
PATHS = {
    "point": "b0",
    "reduce_a": "b1a",
    "conv_a": "b1b",
    "reduce_b": "b2a",
    "conv_b": "b2b",
    "pooled": "b3b",
}
BLOCK = {
    "attention_norm": "0.norm",
    "attention.qkv": "0.fn.to_qkv",
    "attention.out": "0.fn.to_out.0",
    "feed_forward_norm": "1.norm",
    "feed_forward.0": "1.fn.fc1",
    "feed_forward.3": "1.fn.fc2",
}
CROSS_BLOCK = {
    "query": "q",
    "key": "k",
    "value": "v",
    "norm": "norm",
    "feed_forward_norm": "ffn.norm",
    "feed_forward.0": "ffn.fn.fc1",
    "feed_forward.3": "ffn.fn.fc2",
}
RECOUPLING = {
    "query": "q",
    "key": "k",
    "squeeze": "project.0",
    "excite": "project.2",
    "norm": "project.3",
    "student": "linear",
}
INTERACTION = {"reduce": "0", "norm": "1", "out": "3"}

Rows = list[tuple[str, str]]
"""Our module or parameter and the published one, in the published order of registration."""


def table(model: nn.Module) -> Rows:
    """The rows of this network. Raises ValueError where it has no published counterpart."""
    if isinstance(model, FusionNetwork):
        return _fusion_rows(model)
    if isinstance(model, UmdrNetwork):
        return _umdr_rows(model)
    if isinstance(model, UmdrFusionNetwork):
        rows = _cross_rows(model.complement)
        return [(f"complement.{ours}", theirs) for ours, theirs in rows]
    if isinstance(model, CrossComplement):
        return _cross_rows(model)
    if isinstance(model, DecoupledNetwork):
        if len(model.branches) == len(BRANCHES):
            return _unimodal_rows(model.num_blocks)
        raise ValueError(
            f"published networks have {len(BRANCHES)} branches, this one {len(model.branches)}"
        )
    raise ValueError(f"no published layout is known for {type(model).__name__}")


def kept_apart(model: nn.Module) -> tuple[str, ...]:
    """Begins our names of what published files of this network leave to others: UMDR's fusion
    saves only what completes its two networks."""
    return ("rgb.", "depth.") if isinstance(model, UmdrFusionNetwork) else ()


def _fusion_rows(model: FusionNetwork) -> Rows:
    rows = [
        ("encoder", "fusion_model.encoder.enconv"),
        ("decoder", "fusion_model.decoder.deconv"),
        ("classifier", "fusion_model.efc"),
        ("discriminator", "fc"),
    ]
    for trunk, published in ((model.rgb, "Modalit_rgb"), (model.depth, "Modalit_depth")):
        name = published.removeprefix("Modalit_")
        rows += [(f"{name}.{ours}", f"{published}.{theirs}") for ours, theirs in table(trunk)]
    for ours, published in (
        ("spatial_interaction", "crossFusion"),
        ("temporal_interaction", "crossFusionT"),
    ):
        rows += [(f"{ours}.{o}", f"{published}.{p}") for o, p in INTERACTION.items()]
    for i in range(len(model.heads)):
        rows += [(f"heads.{i}.norm", f"classifier{i + 1}.0")]
        rows += [(f"heads.{i}.linear", f"classifier{i + 1}.1")]
    return rows


def _unimodal_rows(num_blocks: int) -> Rows:
    rows = [("spatial.token_norm", "LinearMap.0"), ("spatial.token_linear", "LinearMap.1")]
    for ours, published in UNITS.items():
        rows += _unit(f"spatial.{ours}", published)
    for name in ("3b", "3c", "4b", "4c", "5b", "5c"):
        rows += _inception(f"spatial.inception{name}", f"Mixed_{name}")
    for i, size in enumerate(BRANCHES):
        rows.append((f"branches.{i}.position", f"dtn.pos_embedding_{size}"))
        rows.append((f"branches.{i}.class_token", f"dtn.cls_token_{size}"))
    for block in range(num_blocks):
        stage = f"dtn.multi_scale_transformers.{block}"
        for i, size in enumerate(BRANCHES):
            layer = f"{stage}.transformer_enc_{size}.layers.0"
            rows += [(f"branches.{i}.blocks.{block}.{o}", f"{layer}.{p}") for o, p in BLOCK.items()]
        if block == 0:
            for i, size in enumerate(BRANCHES):
                rows += _inception(f"branches.{i}.inception", f"{stage}.Mixed_{size}")
    rows += [(f"recoupling.{ours}", f"dtn.rcm.{theirs}") for ours, theirs in RECOUPLING.items()]
    for i, size in enumerate(BRANCHES):
        rows.append((f"heads.{i}.norm", f"dtn.mlp_head_{size}.0"))
        rows.append((f"heads.{i}.linear", f"dtn.mlp_head_{size}.1"))
    rows.append(("spatial.motion_attention", "frp_module.rpconv1d"))
    return rows


def _umdr_rows(model: UmdrNetwork) -> Rows:
    rows: Rows = []
    for ours, published in UMDR_UNITS.items():
        rows += _unit(f"spatial.{ours}", published)
    for stage, number in enumerate("345"):
        for pair, letter in enumerate("bc"):
            layer = f"SMS_layers.{(0, 2, 4)[stage]}.Mixed{pair + 1}"
            rows += _inception(f"spatial.inception{number}{letter}", layer)
        layer = f"SMS_layers.{(1, 3, 6)[stage]}"
        names = (
            (ours, theirs.replace("project", "TM_project")) for ours, theirs in RECOUPLING.items()
        )
        rows += [
            (f"spatial.recouplings.{stage}.{ours}", f"{layer}.{theirs}") for ours, theirs in names
        ]
    rows += [("spatial.token_norm", "LinearMap.1"), ("spatial.token_linear", "LinearMap.2")]
    for i in range(len(model.branches)):
        rows.append((f"branches.{i}.class_token", f"dtn.cls_tokens.{i}.cls_token"))
        rows.append((f"branches.{i}.position", f"dtn.cls_tokens.{i}.pos_embedding"))
    for i in range(len(model.branches)):
        layer = f"dtn.multi_scale_transformers.{i}"
        rows += _inception(f"branches.{i}.inception", f"{layer}.0")
        for block in range(model.num_blocks):
            rows += [
                (f"branches.{i}.blocks.{block}.{ours}", f"{layer}.2.layers.{block}.{theirs}")
                for ours, theirs in BLOCK.items()
            ]
        rows += [(f"heads.{i}.norm", f"{layer}.3.0"), (f"heads.{i}.linear", f"{layer}.3.2")]
    return rows


def _cross_rows(model: CrossComplement) -> Rows:
    rows = [("positions.0", "pos_embedding_M"), ("positions.1", "pos_embedding_K")]
    for i in range(len(model.spatial.layers)):
        ours, published = f"spatial.layers.{i}", f"SCC_Module.att_nets.{i}"
        rows += _enhancement(f"{ours}.enhancement", f"{published}.0")
        rows += _cross_block(f"{ours}.rgb", f"{published}.1")
        rows += _cross_block(f"{ours}.depth", f"{published}.2")
    rows.append(("spatial.norm", "SCC_Module.norm"))
    rows += _enhancement("enhancement", "temp_enhance_module")
    for i in range(len(model.temporal.layers)):
        rows += _cross_block(f"temporal.layers.{i}.rgb", f"TimesFormer.att_nets.{i}.0")
        rows += _cross_block(f"temporal.layers.{i}.depth", f"TimesFormer.att_nets.{i}.1")
    rows.append(("temporal.norm", "TimesFormer.norm"))
    for what, published in (("heads", "classifier"), ("norms", "norm")):
        rows += [(f"{what}.{i}", f"{published}{i + 1}") for i in range(2)]
    return rows


def _enhancement(ours: str, published: str) -> Rows:
    names = {"rgb": "mlp_rgb", "depth": "mlp_depth", "norm": "norm"}
    return [(f"{ours}.{o}", f"{published}.{p}") for o, p in names.items()]


def _cross_block(ours: str, published: str) -> Rows:
    return [(f"{ours}.{o}", f"{published}.{p}") for o, p in CROSS_BLOCK.items()]


def _unit(ours: str, published: str) -> Rows:
    return [(f"{ours}.conv", f"{published}.conv3d"), (f"{ours}.norm", f"{published}.bn")]


def _inception(ours: str, published: str) -> Rows:
    rows = []
    for path, published_path in PATHS.items():
        rows += _unit(f"{ours}.{path}", f"{published}.{published_path}")
    return rows
