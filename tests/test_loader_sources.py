"""benchmarks/loader_sources.py: what a GPU's loader cases change arrives where DALI reads it.

GPU graphs are defined here, and not run.
"""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from nvidia.dali.pipeline import Pipeline

from benchmarks import loader
from benchmarks.loader_cases import Case, Setting
from benchmarks.loader_data import write_videos
from benchmarks.loader_sources import HARDWARE_SHARES, SOURCES, VIDEO_THREADS
from pipelines import transforms

TINY = Setting(
    clips=2, size=32, frames=8, batch=1, workers=3, prefetch=1, windows=1, batches=1,
    rgb_size=(64, 48), depth_size=(64, 48),
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("bench")
    write_videos(data, TINY)
    return data


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> list[Pipeline]:
    """The pipelines that would have run on a GPU. Each of them ends before its first batch."""
    found: list[Pipeline] = []

    def run(pipeline: Pipeline, *stream: object) -> None:
        pipeline._build_graph()
        found.append(pipeline)
        raise StopIteration

    monkeypatch.setattr(Pipeline, "run", run)
    for name in ("current_device", "current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return found


def define(source: str, upto: str, clips: Path, defined: list[Pipeline]) -> Pipeline:
    """The only pipeline of a case on a GPU."""
    batches = SOURCES[source].open(Case("cuda", source, "rgb", upto, "warm"), TINY, clips)
    assert next(batches, None) is None
    (pipeline,) = defined
    return pipeline


def operator(pipeline: Pipeline, name: str) -> str:
    """The specification of its only operator of this name."""
    (found,) = (str(op.spec) for op in pipeline._ops if f"OpSpec for {name}:" in str(op.spec))
    return found


@pytest.mark.parametrize("upto", ["decode", "motion"])
@pytest.mark.parametrize(("source", "share"), [("frames", 1.0), *HARDWARE_SHARES.items()])
def test_the_hardware_decoder_is_given_the_share_of_the_case(clips, defined, source, share, upto):
    pipeline = define(source, upto, clips, defined)
    decoder = operator(pipeline, "decoders__Image")
    assert "device: mixed\n" in decoder and f"hw_decoder_load: {share:.6f}\n" in decoder
    assert pipeline.num_threads == TINY.workers
    assert transforms.HARDWARE_SHARE == 1, "of the program itself"


@pytest.mark.parametrize(("source", "threads"), [("videos", TINY.workers), *VIDEO_THREADS.items()])
def test_videos_are_decoded_by_the_threads_of_the_case(clips, defined, put_gpu, source, threads):
    put_gpu("hopper")
    pipeline = define(source, "motion", clips, defined)
    assert "device: mixed\n" in operator(pipeline, "decoders__Video")
    assert pipeline.num_threads == threads


def test_they_are_chosen_by_name_and_never_measured_on_a_cpu():
    named = ["frames", *HARDWARE_SHARES]
    assert named == ["frames", "frames_hw0", "frames_hw65", "frames_hw80"]
    both = ("cpu", "cuda")
    cases, _ = loader.choose(both, ["cuda/frames*/rgb/decode/warm"], with_peers=False)
    assert [case.source for case in cases] == named
    cases, _ = loader.choose(both, ["cuda/videos*/rgb/motion/warm"], with_peers=False)
    assert [case.source for case in cases] == ["videos", "videos_threads16", "videos_threads32"]
    cases, _ = loader.choose(("cpu",), ["*"], with_peers=False)
    assert not {case.source for case in cases} & {*HARDWARE_SHARES, *VIDEO_THREADS}
