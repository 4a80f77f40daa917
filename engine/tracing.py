"""`train.profile`: a trace of some steps by torch's profiler, for Perfetto or chrome://tracing."""

import re
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

WINDOW = re.compile(r"(\d+):(\d+)")


def window(text: str) -> tuple[int, int]:
    """`START:STOP` -> both; the empty text -> a window without a step.

    Raises ValueError where it is something else.
    """
    if not text:
        return 0, 0
    found = WINDOW.fullmatch(text)
    start, stop = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= start < stop:
        raise ValueError(
            f"is {text!r}; it must be START:STOP, such as 20:25, which traces the steps 20 to 24"
        )
    return start, stop


class Trace:
    """Writes FOLDER/trace_START_STOP.json.gz: operations and kernels, the parts of the steps, and
    the stages of the loader, whose threads work on later steps meanwhile."""

    def __init__(self, text: str, folder: Path, device: torch.device, *, enabled: bool):
        """`text` as `window` takes it. One rank is enough: `enabled` on that one."""
        self.start, self.stop = window(text) if enabled else (0, 0)
        self.path = folder / f"trace_{self.start}_{self.stop}.json.gz"
        self.device = device
        self._profiler: profile | None = None

    def before(self, step: int) -> None:
        """Begin or end, before `step` begins, as log lines number it."""
        if self._profiler is None and self.start <= step < self.stop:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities, experimental_config=_all_threads())
            self._profiler.start()
        elif self._profiler is not None and step >= self.stop:
            self.close()

    def close(self) -> None:
        """End it where it runs; a trace that cannot be written stops nobody."""
        if self._profiler is None:
            return
        began = time.perf_counter()
        running, self._profiler, self.stop = self._profiler, None, 0
        running.stop()
        try:
            running.export_chrome_trace(str(self.path))
        except (OSError, RuntimeError) as error:
            print(f"train.profile: {self.path} cannot be written ({error})", flush=True)
            return
        seconds = time.perf_counter() - began
        print(f"train.profile: {self.path} written in {seconds:.1f} s", flush=True)


def _all_threads() -> torch._C._profiler._ExperimentalConfig | None:
    """The loader's threads too; torch 2.6 can show but the one that starts the profiler."""
    try:
        return torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        return None
