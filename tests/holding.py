"""Training runs that hold still behind a step until the test lets them go on: what happens to them
happens there, however busy the machine is."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


class HeldRun:
    """A run of tests/held_training.py."""

    def __init__(
        self, start: Callable[..., subprocess.Popen], folder: Path, steps: list[int],
        *overrides: str, ranks: int = 0, **options: object,
    ) -> None:  # fmt: skip
        """`start`: the fixture; `steps`: behind which it holds still; `folder`: new, of its own."""
        folder.mkdir()
        self.folder, self.ranks = folder, max(ranks, 1)
        env = {"HOLD_IN": str(folder), "HOLD": ",".join(map(str, steps))}
        self.process = start(
            *overrides, ranks=ranks, script="tests/held_training.py", env=env, **options
        )

    def wait(self, step: int) -> None:
        """Until all ranks hold still behind `step`."""
        for rank in range(self.ranks):
            self.wait_for(self.folder / f"held_{step}_{rank}")

    def wait_until_heard(self, number: int) -> None:
        """Until all ranks know of a signal."""
        for rank in range(self.ranks):
            self.wait_for(self.folder / f"heard_{int(number)}_{rank}")

    def wait_for(self, path: Path) -> None:
        while not path.exists():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)

    def go(self, step: int) -> None:
        """On from behind `step`."""
        (self.folder / f"go_{step}").touch()

    def end(self) -> str:
        """What it wrote to stderr, once it has ended."""
        return self.process.communicate(timeout=300)[1]
