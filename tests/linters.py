"""The linters that the dev extra brings, found beside the interpreter."""

import platform
import shutil
import sys
from pathlib import Path

import pytest


def linter(name: str) -> str:
    """Its path. Fails where it is missing, except hadolint, whose wheels are for one platform."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is not None:
        return found
    if name == "hadolint" and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("hadolint has no wheel for this platform")
    pytest.fail(f"{name} is not installed: pip install -e '.[dev]'")
