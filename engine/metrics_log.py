"""metrics.jsonl and TensorBoard's events of a run. Lines that cannot be written wait for the disk:
a full one stops no training. Knows nothing of what is measured."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from engine.warn import warn

Line = dict[str, Any]


class MetricsLog:
    """The log in the directory `folder`, which others make."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self._folder = folder / "tensorboard"
        self._events: SummaryWriter | None = None
        self._waiting: list[Line] = []

    def rewind(self, step: int, is_kept: Callable[[Line], bool]) -> None:
        """Forget what was logged after the checkpoint, taken behind `step`, that training resumes
        from. Raises OSError."""
        if self.path.exists():
            # A line without an end is what a killed process was about to write.
            lines = [line for line in self._parsed() if line[0].endswith("\n")]
            partial = self.path.with_name(self.path.name + ".partial")
            partial.write_text("".join(text for text, line in lines if is_kept(line)))
            os.replace(partial, self.path)  # a kill in mid-write must not cost the log
        self._events = SummaryWriter(str(self._folder), purge_step=step + 1)

    def add(self, kind: str, step: int, epoch: int, **values: Any) -> None:
        """One line of metrics.jsonl; its numbers also to TensorBoard, named `kind/key`."""
        self._waiting.append({"kind": kind, "epoch": epoch, "step": step, **values})
        try:
            self.flush()
        except OSError as error:
            if len(self._waiting) == 1:
                warn(f"{error}; training goes on, and lines are kept until they can be written")

    def flush(self) -> None:
        """Write the lines that wait. Raises OSError naming the file where that still fails."""
        if not self._waiting:
            return
        try:
            self._append("".join(json.dumps(line) + "\n" for line in self._waiting).encode())
        except OSError as error:
            raise OSError(f"{self.path}: cannot be written ({error.strerror})") from None
        if len(self._waiting) > 1:
            warn(f"{self.path}: is written again, {len(self._waiting)} lines at once")
        for line in self._waiting:
            self._show(line)
        self._waiting.clear()

    def read(self, kind: str) -> list[Line]:
        """All logged lines of one kind, oldest first."""
        if not self.path.exists():
            return []
        return [line for _, line in self._parsed() if line["kind"] == kind]

    def close(self) -> None:
        """Write what waits, TensorBoard's events too. Raises OSError where lines stay unwritten."""
        self.flush()
        try:
            if self._events is not None:
                self._events.close()
        except OSError as error:
            self._lost_events(error)

    def _append(self, text: bytes) -> None:
        """All of it or nothing: half a line would spoil the next one."""
        with open(self.path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                while text:
                    text = text[file.write(text) :]
            except OSError:
                file.truncate(end)
                raise

    def _parsed(self) -> Iterator[tuple[str, Line]]:
        """(text, line) of each line that can be read; a power cut leaves some that cannot."""
        content = self.path.read_text(errors="replace")
        for number, text in enumerate(content.splitlines(keepends=True), start=1):
            line = _line(text)
            if line is not None:
                yield text, line
            elif text.endswith("\n"):
                warn(f"{self.path}: line {number} is damaged and left out")

    def _show(self, line: Line) -> None:
        """To TensorBoard, whose writing thread dies where it cannot write: then by a new one."""
        try:
            if self._events is None or not self._folder.is_dir():
                self._events = SummaryWriter(str(self._folder))
            for key, value in line.items():
                if key not in ("kind", "step", "epoch") and isinstance(value, (int, float)):
                    self._events.add_scalar(f"{line['kind']}/{key}", value, line["step"])
        except OSError as error:
            self._lost_events(error)

    def _lost_events(self, error: OSError) -> None:
        self._events = None
        warn(f"{self._folder}: events are missing there ({error}); metrics.jsonl has them")


def _line(text: str) -> Line | None:
    """A line of the log, if that is what the text is."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"kind", "step", "epoch"} <= line.keys() else None
