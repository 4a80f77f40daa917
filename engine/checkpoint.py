"""Checkpoints on disk: tensors and numbers only, replaced atomically, held to their checksums.

Published checkpoints are read too. No file gets to execute code.
"""

import argparse
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.completion import is_part
from engine.published_checkpoint import is_published, to_ours
from models.fusion import FusionNetwork
from models.video_networks import from_torchvision, is_torchvision

FORMAT = 1

NUMPY_NUMBERS = ("float64", "float32", "float16", "int64", "int32", "bool")
"""What the published trainers left in their files: NumPy's learning rates and accuracies."""

ZIP = b"PK\3\4"
"""How files of torch.save begin since torch 1.6."""


class Damaged(ValueError):
    """A file that no longer holds what was written to it; its text names the file."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` in our form to `path`, as `write` does."""
    write(path, {"format": FORMAT, **state})


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state` as it is to `path`; a crash or a full disk at any moment leaves the old file
    whole. Raises OSError naming the file.
    """
    with _replacing(path) as partial, open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def link(source: Path, target: Path) -> None:
    """A second name for the saved file `source`, given as `write` writes: a hard link, or a copy
    where the file system has none."""
    with _replacing(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            with open(source, "rb") as whole, open(partial, "wb") as copy:
                shutil.copyfileobj(whole, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint in our form: what `save` wrote, or a published one (torchvision's weights of a
    video network among them), converted.

    Raises ValueError naming the file where it is neither or only a part of a network, Damaged where
    it was one.
    """
    state = in_our_form(read(path, device), path)
    if is_part(state):
        raise ValueError(
            f"{path}: holds only what completes two networks; join them: python -m engine.convert "
            f"{path} OUT --rgb FILE --depth FILE"
        )
    return state


def in_our_form(content: Any, path: Path) -> dict[str, Any]:
    """What `read` found in `path`, as `load` returns it."""
    if isinstance(content, dict) and is_published(content):
        try:
            return {"format": FORMAT, **to_ours(content)}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if is_torchvision(content):
        model = from_torchvision(content)
        return {"format": FORMAT, "config": {}, "progress": {"epoch": 0}, "model": model}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path}: is no checkpoint of this program (format {FORMAT}), nor a published one "
            "(a dictionary with 'model', or torchvision's of tensors)"
        )
    return content


def read(path: Path, device: torch.device | str = "cpu") -> Any:
    """A file of torch.save's, whatever it holds; nothing in it is executed.

    Raises Damaged naming the file, or ValueError naming what it asks for beyond tensors and
    numbers.
    """
    kinds = [type(np.dtype(name)) for name in NUMPY_NUMBERS]
    readers = [_numpy_number(module) for module in ("numpy.core", "numpy._core")]
    # UMDR's files hold their command line: a namespace has values, and no code.
    known: list[Any] = [np.dtype, *kinds, *readers, argparse.Namespace]
    try:
        _hold_to_checksums(path)
        with torch.serialization.safe_globals(known):
            return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zipfile and pickle raise whatever damage makes them stumble over
        asked = re.search(r"(?:GLOBAL |but got <class ')([\w.]+)", str(error))
        if asked:
            raise ValueError(
                f"{path}: is refused: to read it, {asked[1]} would have to be called, and a file "
                "that brings calls can do anything; have its sender save tensors and numbers only"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(
            f"{path}: cannot be read as a checkpoint ({reason}); put a good copy in its place, or "
            "take another checkpoint"
        ) from None


def _hold_to_checksums(path: Path) -> None:
    """Compare every record of a file of torch.save's with the CRC32 that is kept beside it, which
    torch.load does not. Files from before torch 1.6 keep none. Raises ValueError naming the record.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP and not zipfile.is_zipfile(file):
            return
        try:
            with zipfile.ZipFile(file) as archive:
                # All 0: written under torch.serialization.set_crc32_options(False).
                kept = any(record.CRC for record in archive.infolist())
                damaged = archive.testzip() if kept else None
        except zipfile.BadZipFile as error:
            raise ValueError(f"its end is missing or damaged: {error}") from None
        if damaged:
            raise ValueError(f"{damaged} differs from its checksum")


def difference(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """The first entry in which two state dicts differ by name or shape; empty where none does."""
    for key in own:
        if key in saved and own[key].shape != saved[key].shape:
            return f"{key} is {tuple(saved[key].shape)} there and {tuple(own[key].shape)} here"
    if missing := own.keys() - saved.keys():
        return f"{min(missing)} is missing there"
    if surplus := saved.keys() - own.keys():
        return f"{min(surplus)} is not known here"
    return ""


def evaluated(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights that a run evaluates: their running average (train.ema) where there is one."""
    return state.get("ema", state["model"])


def load_model(
    model: torch.nn.Module, state: dict[str, Any], path: Path, averaged: bool = False
) -> None:
    """Fill `model` from a loaded checkpoint, strictly; `averaged`: with what the run evaluates
    (`evaluated`) instead of what it goes on from.

    Raises ValueError naming the file and the first difference where it is of another network.
    """
    weights = evaluated(state) if averaged else state["model"]
    if detail := difference(model.state_dict(), weights):
        raise ValueError(
            f"{path}: is a checkpoint of another network ({detail}); use the config it was trained "
            "with, or another train.run_dir"
        )
    model.load_state_dict(weights)
    adopt_reshape(model, state)


def adopt_reshape(model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Set the fusion network's `published_reshape` to what the loaded weights were trained with:
    unlike other options it leaves no trace in their shapes, and weights are useless without it."""
    if isinstance(model, FusionNetwork):
        model.published_reshape = state["config"]["model"].get("published_reshape", False)


def _numpy_number(module: str) -> Callable[..., Any]:
    """Our own reading of NumPy's pickled numbers, under the name of it that NumPy 1 or 2 wrote:
    no function of NumPy's is let in, and no other kind of number can come of it."""

    def scalar(kind: np.dtype, data: bytes) -> np.generic:
        return np.frombuffer(data, kind, count=1)[0]

    scalar.__module__ = f"{module}.multiarray"
    scalar.__qualname__ = "scalar"
    return scalar


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to: what the block leaves there takes the place of `path`, in one go and for
    good, or, where anything fails, never. Raises OSError naming `path`."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        yield partial
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as RuntimeError.
        with suppress(OSError):  # a disk that cannot be written
            partial.unlink(missing_ok=True)
        raise OSError(
            f"{path}: cannot be saved ({error}); the checkpoint before it is untouched: free some "
            "space, or set train.run_dir to a folder that can be written"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
