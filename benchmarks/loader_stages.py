"""The loader's work on frame folders cut off after one of its first stages: small DALI graphs that
end there, driven as the loader drives its own. The later stages are the loader itself."""

# DALI's type stubs have gaps.
# mypy: disable-error-code="attr-defined, call-overload"

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import DataNode
from nvidia.dali.types import DALIDataType

from pipelines import transforms
from pipelines.config import DataConfig
from pipelines.graph import Feed, Requests, path_arrays, run, view_arrays


def first_stages(
    upto: str, config: DataConfig, device: str, plan: Iterable[Requests], **pipeline: Any
) -> Iterator[Any]:
    """One item per batch of the plan, made on `device` as far as `hand_over`, `read` or `decode`.

    `pipeline`: batch_size, num_threads, prefetch_queue_depth of the DALI pipeline.
    """
    on_gpu = device == "cuda"
    pipeline["device_id"] = torch.cuda.current_device() if on_gpu else None
    if upto == "hand_over":
        return _handed_over(plan, view_arrays if on_gpu else path_arrays, pipeline)
    graph = partial(
        _file_graph, config=config, device="gpu" if on_gpu else "cpu", decoded=upto == "decode",
        **pipeline,
    )  # fmt: skip
    stream: Callable[[], Any] = torch.cuda.current_stream if on_gpu else lambda: None
    return run(graph, path_arrays, plan, config, stream)


def _handed_over(
    plan: Iterable[Requests],
    arrays: Callable[[Requests], tuple[Any, ...]],
    pipeline: dict[str, Any],
) -> Iterator[Any]:
    batches = iter(plan)
    num_inputs = len(arrays(next(batches)))
    graph = _input_graph(lambda: arrays(next(batches)), num_inputs, **pipeline)
    while True:
        yield graph.run()


@pipeline_def
def _input_graph(feed: Feed, num_inputs: int) -> tuple[DataNode, ...]:
    """What the arrays of a batch become, and nothing done with it."""
    return tuple(fn.external_source(feed, num_outputs=num_inputs))


@pipeline_def
def _file_graph(feed: Feed, config: DataConfig, device: str, decoded: bool) -> tuple[DataNode, ...]:
    """The decoded frames of each modality, or nothing, then the signatures that `run` checks."""
    count = len(config.modalities)
    paths = fn.external_source(feed, num_outputs=count, dtype=DALIDataType.UINT8, ndim=1)
    files = [transforms.read(path) for path in paths]
    frames = [
        (transforms.decode_depth if config.in_mm(modality) else transforms.decode_color)(
            file, device
        )
        for file, modality in zip(files, config.modalities, strict=True)
        if decoded
    ]
    return *frames, *map(transforms.signature, files)
