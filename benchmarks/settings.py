"""How a process of a benchmark computes: what moves a figure without being part of the program."""

import torch


def settings() -> dict[str, bool]:
    """Whether this process may use TF32 in matrix products and in cuDNN's convolutions, and whether
    cuDNN chooses its algorithms by measuring them."""
    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def as_text(found: dict[str, bool]) -> str:
    """In words."""
    matmul, cudnn, benchmark = ("on" if value else "off" for value in found.values())
    return f"TF32 {matmul}/{cudnn} (matmul/cuDNN), cudnn.benchmark {benchmark}"
