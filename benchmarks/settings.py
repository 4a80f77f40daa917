"""Settings of torch that decide which kernels a figure was measured with: read, never changed."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def settings() -> dict[str, bool]:
    """Reads what this process allows: TF32 in matrix products and in cuDNN, and cuDNN's search for
    the fastest kernel of each shape."""
    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def as_text(found: Mapping[str, bool]) -> str:
    """Formats settings as `TF32 off/on (matmul/cuDNN), cudnn.benchmark off`."""
    said = {name: "on" if value else "off" for name, value in found.items()}
    return (
        f"TF32 {said['tf32_matmul']}/{said['tf32_cudnn']} (matmul/cuDNN), "
        f"cudnn.benchmark {said['cudnn_benchmark']}"
    )


def rows(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields one line per combination of settings, with the names of the entries measured so; they
    are `all` where there is one combination."""
    by_text: dict[str, list[str]] = {}
    for name, entry in entries.items():
        by_text.setdefault(as_text(entry["settings"]), []).append(name)
    for text, names in by_text.items():
        yield f"measured with {text}: {'all' if len(by_text) == 1 else ', '.join(names)}"
