"""The loader's work on frame folders cut off after one of its first stages: small DALI graphs that
end there, driven as the loader drives its own. The later stages are the loader itself."""

# DALI's type stubs have gaps.
# mypy: disable-error-code="attr-defined, call-overload"

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import DataNode

from pipelines import transforms
from pipelines.config import DataConfig
from pipelines.graph import Feed, Requests, decode_arrays, decode_graph, run, view_arrays
from pipelines.media import Way


def first_stages(
    upto: str, config: DataConfig, device: str, plan: Iterable[Requests], **pipeline: Any
) -> Iterator[Any]:
    """One item per batch of the plan, made on `device` as far as `hand_over`, `read` or `decode`.

    `pipeline`: batch_size, num_threads, prefetch_queue_depth of the DALI pipelines, one for each
    modality.
    """
    on_gpu = device == "cuda"
    pipeline["device_id"] = torch.cuda.current_device() if on_gpu else None
    plans = itertools.tee(plan, len(config.modalities))
    stage = _handed_over if upto == "hand_over" else partial(_from_files, upto == "decode")
    yield from zip(
        *(
            stage(own_plan, config, modality, on_gpu, pipeline)
            for own_plan, modality in zip(plans, config.modalities, strict=True)
        ),
        strict=True,
    )


def _handed_over(
    plan: Iterable[Requests],
    config: DataConfig,
    modality: str,
    on_gpu: bool,
    pipeline: dict[str, Any],
) -> Iterator[Any]:
    make = view_arrays if on_gpu else decode_arrays
    batches = (make(requests, config, modality, Way.FILES) for requests in plan)
    graph = _input_graph(lambda: next(batches), len(next(batches)), **pipeline)
    while True:
        yield graph.run()


def _from_files(
    decoded: bool,
    plan: Iterable[Requests],
    config: DataConfig,
    modality: str,
    on_gpu: bool,
    pipeline: dict[str, Any],
) -> Iterator[Any]:
    stream: Callable[[], Any] = torch.cuda.current_stream if on_gpu else lambda: None
    graph = partial(decode_graph, device="gpu" if on_gpu else "cpu") if decoded else _read_graph
    graph = partial(graph, **pipeline)
    return run(graph, decode_arrays, plan, config, modality, Way.FILES, stream)


@pipeline_def
def _input_graph(feed: Feed, num_inputs: int) -> tuple[DataNode, ...]:
    """What the arrays of a batch become, and nothing done with it."""
    return tuple(fn.external_source(feed, num_outputs=num_inputs))


@pipeline_def
def _read_graph(feed: Feed, config: DataConfig, modality: str, way: Way) -> DataNode:
    """The signatures that `run` checks, of files that are read and not decoded."""
    (path,) = fn.external_source(feed, num_outputs=1)
    return transforms.signature(transforms.read(path))
