"""What the doctor says: rows of a table, as text and as JSON. Looks at nothing itself."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARN, FAIL, ABSENT = "ok", "warn", "fail", "absent"
"""Fine; training goes on, but; training would fail; not here, or not checked, as it then says."""

STATES = (OK, WARN, FAIL, ABSENT)
LEAST_WIDTH = 60


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    name: str
    state: str
    found: str
    why: str = ""
    """Why it matters; for `warn` and `fail`."""

    mend: str = ""
    """The one command that mends it. What is to be put in is in capitals."""

    def __post_init__(self) -> None:
        assert self.state in STATES, self.state
        assert self.state not in (WARN, FAIL) or (self.why and self.mend), self.name


def training_fails(rows: Iterable[Row]) -> bool:
    """Whether any row says so."""
    return any(row.state == FAIL for row in rows)


def as_text(rows: Sequence[Row], width: int) -> str:
    """The table; below a row that is not fine, why that matters and what mends it."""
    width = max(width, LEAST_WIDTH)
    name_width = max(len(row.name) for row in rows)
    indent = " " * (name_width + 10)
    lines = []
    for row in rows:
        head = f"{row.state:6}  {row.name:{name_width}}  "
        lines += _wrapped(row.found, width, head, indent)
        if row.state in (WARN, FAIL):
            lines += _wrapped(row.why, width, indent, indent)
        if row.mend and row.state != OK:
            lines.append(f"{indent}$ {row.mend}")  # whole, to be copied
    return "\n".join(lines)


def as_json(rows: Sequence[Row], machine: str, device: str) -> dict[str, Any]:
    """Plain values: `ok` is false where training would fail."""
    return {
        "ok": not training_fails(rows),
        "machine": machine,
        "device": device,
        "rows": [asdict(row) for row in rows],
    }


def gib(num_bytes: float) -> str:
    """Bytes for people: `12.3 GiB`, or MiB below one."""
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / 2**30:.1f} GiB"


def _wrapped(text: str, width: int, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), width, initial_indent=first, subsequent_indent=later,
        break_long_words=False, break_on_hyphens=False,
    ) or [first.rstrip()]  # fmt: skip
