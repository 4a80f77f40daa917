"""Checkpoints on disk: tensors and plain values only, replaced atomically, never half written."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; a crash or a full disk at any moment leaves the old file whole.

    Raises OSError naming the file.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as RuntimeError.
        partial.unlink(missing_ok=True)
        raise OSError(
            f"{path}: cannot be saved ({error}); the checkpoint before it is untouched: free some "
            "space, or set train.run_dir to a folder that can be written"
        ) from error


def copy(source: Path, target: Path) -> None:
    """A second name for a saved checkpoint, as atomic as `save`."""
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
    _sync_folder(target.parent)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote. Raises ValueError naming the file where it is not such a file."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: cannot be read as a checkpoint ({reason}); delete it to start anew, or put "
            "a good copy in its place"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path}: is no checkpoint of this program (format {FORMAT})")
    return state


def load_model(model: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Fill `model` from a loaded checkpoint, strictly.

    Raises ValueError naming the file and the first difference where it is of another network.
    """
    own, saved = model.state_dict(), state["model"]
    differing = [key for key in own if key in saved and own[key].shape != saved[key].shape]
    missing, surplus = own.keys() - saved.keys(), saved.keys() - own.keys()
    if not (differing or missing or surplus):
        model.load_state_dict(saved)
        return
    if differing:
        key = differing[0]
        detail = f"{key} is {tuple(saved[key].shape)} there and {tuple(own[key].shape)} here"
    else:
        detail = f"{min(missing or surplus)} is {'missing there' if missing else 'not known here'}"
    raise ValueError(
        f"{path}: is a checkpoint of another network ({detail}); use the config it was trained "
        "with, or another train.run_dir"
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
