"""Scripts in processes forked from one that has imported torch and DALI already: as a new
interpreter runs them, less the six seconds of processor time that its imports take. Not for tests
of torchrun itself."""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "engine.training", "benchmarks.end_to_end", "benchmarks.step", "pytest"]
)
"""What a run imports, a benchmark, and a test's function that a process is given; torch._dynamo is
what torch's optimizers do."""


class Forked:
    """As much of subprocess.Popen as tests of scripts use; stdout and stderr are text."""

    def __init__(
        self, script: Path, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]
    ) -> None:
        self.args = [str(script), *arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._written = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._written:
            path.touch()
        self._process = CONTEXT.Process(
            target=_run, args=(self.args, str(cwd), dict(env), *map(str, self._written))
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def stderr(self) -> Iterator[str]:
        """Its lines from the first on, as they come, to its end."""
        with self._written[1].open() as file:
            ended, line = False, ""
            while not ended:
                ended = self.poll() is not None
                while part := file.readline():
                    line += part
                    if line.endswith("\n"):
                        yield line
                        line = ""
                time.sleep(0.002)
            if line:
                yield line

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        out, err = (path.read_text(errors="replace") for path in self._written)
        return out, err


class ForkedRanks:
    """A process per rank, in torchrun's environment; where one fails, the others are ended soon."""

    PATIENCE_S = 120.0

    def __init__(
        self, num_ranks: int, script: Path, arguments: Sequence[str], cwd: Path,
        env: Mapping[str, str],
    ) -> None:  # fmt: skip
        shared = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks),
        }  # fmt: skip
        self.ranks = [
            Forked(script, arguments, cwd, {**env, **shared, "RANK": rank, "LOCAL_RANK": rank})
            for rank in map(str, range(num_ranks))
        ]
        self.args = self.ranks[0].args

    @property
    def returncode(self) -> int | None:
        """torchrun's: 0 or 1."""
        statuses = [rank.poll() for rank in self.ranks]
        return None if None in statuses else int(any(statuses))

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        deadline, failed = time.monotonic() + timeout, False
        while self.poll() is None and time.monotonic() < deadline:
            if not failed and any(rank.poll() for rank in self.ranks):
                failed, deadline = True, min(deadline, time.monotonic() + self.PATIENCE_S)
            time.sleep(0.01)
        for rank in self.ranks:
            rank.send_signal(signal.SIGKILL)
        if self.poll() is None and not failed:
            raise subprocess.TimeoutExpired(self.args, timeout)
        outputs = [rank.communicate() for rank in self.ranks]
        out, err = ("".join(texts) for texts in zip(*outputs, strict=True))
        return out, err


def run_code(
    code: str, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 300.0
) -> subprocess.CompletedProcess:
    """As `python -c` runs it, to its end."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "code.py")
        script.write_text(code)
        process = Forked(script, arguments, Path.cwd(), {**os.environ, **(env or {})})
        try:
            out, err = process.communicate(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(arguments: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    """In the child: what a new interpreter begins with, the script, and what one ends with."""
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
