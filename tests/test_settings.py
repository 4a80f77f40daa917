"""benchmarks/settings.py: what stands beside every figure."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.settings import as_text, rows, settings

PLACES = {
    "tf32_matmul": (torch.backends.cuda.matmul, "allow_tf32"),
    "tf32_cudnn": (torch.backends.cudnn, "allow_tf32"),
    "cudnn_benchmark": (torch.backends.cudnn, "benchmark"),
}


@pytest.fixture
def all_off() -> Iterator[dict[str, bool]]:
    """All settings off, until the test is over."""
    before = {name: getattr(*place) for name, place in PLACES.items()}
    for place in PLACES.values():
        setattr(*place, False)
    yield dict.fromkeys(PLACES, False)
    for name, place in PLACES.items():
        setattr(*place, before[name])


@pytest.mark.parametrize("name", PLACES)
def test_each_setting_is_read_where_torch_keeps_it(all_off, name):
    assert settings() == all_off
    setattr(*PLACES[name], True)
    assert settings() == {**all_off, name: True}


def test_settings_are_told_in_a_line():
    found = {"tf32_matmul": False, "tf32_cudnn": True, "cudnn_benchmark": False}
    assert as_text(found) == "TF32 off/on (matmul/cuDNN), cudnn.benchmark off"
    assert as_text(dict.fromkeys(found, True)) == "TF32 on/on (matmul/cuDNN), cudnn.benchmark on"


def test_entries_of_other_settings_are_named_apart():
    off = dict.fromkeys(PLACES, False)
    on = dict.fromkeys(off, True)
    text = "measured with TF32 {0}/{0} (matmul/cuDNN), cudnn.benchmark {0}: {1}"
    same = {"a": {"settings": off}, "b": {"settings": off}}
    assert list(rows(same)) == [text.format("off", "all")]
    assert list(rows(same | {"c": {"settings": on}})) == [
        text.format("off", "a, b"), text.format("on", "c")
    ]  # fmt: skip
    assert list(rows({})) == []
