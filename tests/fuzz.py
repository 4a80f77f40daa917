"""Thousands of damaged files against the whole way from a list to batches: each must be refused by
name or delivered as any decoder sees it. `python tests/fuzz.py --cases 3000 --seed 0`; a finding is
repeated by `--kind KIND --only NUMBER` with its seed.

This process only starts others and reads their lines: it survives what kills them.
"""

import argparse
import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 120
"""Without a word from a process that works on one case: it hangs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=300, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="only this kind of file; repeatable")
    parser.add_argument("--only", type=int, help="this case of each kind alone")
    parser.add_argument("--json", help="file for the counts and defects")
    parser.add_argument("--work", nargs=3, metavar=("KIND", "FIRST", "LAST"),
                        help=argparse.SUPPRESS)  # fmt: skip
    given = parser.parse_args(arguments)
    if given.work:
        work(given.work[0], given.seed, int(given.work[1]), int(given.work[2]))
        return 0
    kinds = given.kind or kinds_known()
    results: list[dict[str, Any]] = []
    for place, kind in enumerate(kinds):
        count = given.cases // len(kinds) + (place < given.cases % len(kinds))
        first, last = (given.only, given.only + 1) if given.only is not None else (0, count)
        results += run(kind, given.seed, first, last)
        print(f"{kind}: {last - first} cases", file=sys.stderr, flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(record(results), indent=1) + "\n")
    print(table(results))
    return int(any(result["outcome"].isupper() for result in results))


def record(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many cases of each kind came to each outcome, by which command and commit; defects."""
    sys.path.append(str(ROOT))
    from engine.run import commit  # not earlier: the cases are done without torch in this process

    counts: dict[str, Counter[str]] = {}
    for result in results:
        counts.setdefault(result["kind"], Counter())[result["outcome"]] += 1
    return {
        "what": "damaged files",
        "command": shlex.join(["python", "tests/fuzz.py", *sys.argv[1:]]),
        "commit": commit(),
        "cases": len(results),
        "counts": {kind: dict(sorted(found.items())) for kind, found in counts.items()},
        "defects": [result for result in results if result["outcome"].isupper()],
    }


def kinds_known() -> list[str]:
    words = [sys.executable, "-c", "import fuzz_case; print(*fuzz_case.KINDS)"]
    done = subprocess.run(words, env=_environment(), check=True, capture_output=True, text=True)
    return done.stdout.split()


def run(kind: str, seed: int, first: int, last: int) -> list[dict[str, Any]]:
    """Results of the cases first .. last - 1, in as many processes as it takes."""
    results: list[dict[str, Any]] = []
    while first < last:
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            done, ending = _listen(kind, seed, first, last, said)
            said.seek(0)
            words = said.read()[-2000:]
        results += done
        first += len(done)
        if first < last:
            assert ending, f"{kind}: the process ended by itself: {words}"
            results.append({"kind": kind, "number": first, "damage": "?", "moment": "?",
                            "file": "?", "outcome": ending, "what": words[-600:]})  # fmt: skip
            first += 1
    return results


def _listen(
    kind: str, seed: int, first: int, last: int, said: Any
) -> tuple[list[dict[str, Any]], str]:
    """The results that one process gave, and CRASH or HANG if it did not end well."""
    words = worker_command(kind, seed, first, last)
    done: list[dict[str, Any]] = []
    with subprocess.Popen(
        words, env=_environment(), stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT,
        start_new_session=True,
    ) as process, selectors.DefaultSelector() as selector:  # fmt: skip
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(PATIENCE_S):
            line = process.stdout.readline()
            if not line:
                break
            done.append(json.loads(line))
        else:
            os.killpg(process.pid, signal.SIGKILL)
            return done, "HANG"
    return done, "CRASH" if process.returncode < 0 else ""


def worker_command(kind: str, seed: int, first: int, last: int) -> list[str]:
    words = [sys.executable, __file__, "--seed", str(seed)]
    return [*words, "--work", kind, str(first), str(last)]


def work(kind: str, seed: int, first: int, last: int) -> None:
    """One line of JSON per case, as soon as it is over."""
    import fuzz_case

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        data = fuzz_case.make(kind, Path(folder))
        for number in range(first, last):
            result = fuzz_case.run_case(data, kind, seed, number)
            result["what"] = result["what"].replace(folder, "")
            print(json.dumps(result), flush=True)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Counts by kind and outcome, then a line for each defect."""
    counts = Counter((result["kind"], result["outcome"]) for result in results)
    outcomes = sorted({outcome for _, outcome in counts}, key=lambda name: (name.isupper(), name))
    lines = ["| kind | cases | " + " | ".join(outcomes) + " |", "|---" * (len(outcomes) + 2) + "|"]
    for kind in [*dict.fromkeys(result["kind"] for result in results), "all"]:
        row = [
            sum(n for (k, o), n in counts.items() if o == outcome and kind in (k, "all"))
            for outcome in outcomes
        ]
        lines.append("| " + " | ".join([kind, str(sum(row)), *map(str, row)]) + " |")
    for result in results:
        if result["outcome"].isupper():
            lines.append("{outcome} --kind {kind} --only {number}: {damage} {moment}: {what}"
                         .format(**result))  # fmt: skip
    return "\n".join(lines)


def _environment() -> dict[str, str]:
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    sys.exit(main())
