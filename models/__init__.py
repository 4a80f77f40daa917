"""Networks: tensors in, `ModelOutput` out. No data, no configuration, no training state."""

from models.output import ModelOutput
from models.registry import build_model

__all__ = ["ModelOutput", "build_model"]
