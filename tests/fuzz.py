"""Thousands of damaged files against the whole way from a list to batches: each must be refused by
name or delivered as any decoder sees it. `python tests/fuzz.py --cases 3000 --seed 0`; a finding is
repeated by `--kind KIND --only NUMBER` with its seed.

This process only forks others, which need not import torch and DALI anew, and takes their results:
it survives what kills them.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 120
"""Without a word from a process that works on one case: it hangs."""

CONTEXT: Any = multiprocessing.get_context("fork")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=300, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="only this kind of file; repeatable")
    parser.add_argument("--only", type=int, help="this case of each kind alone")
    parser.add_argument("--json", help="file for the counts and defects")
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch
    sys.path.append(str(ROOT))
    import fuzz_case

    kinds = given.kind or fuzz_case.KINDS
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
    from engine.run import commit

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


def run(kind: str, seed: int, first: int, last: int) -> list[dict[str, Any]]:
    """Results of the cases first .. last - 1, in as many processes as it takes."""
    results: list[dict[str, Any]] = []
    while first < last:
        with tempfile.NamedTemporaryFile("w+", errors="replace") as said:
            done, ending = _listen(kind, seed, first, last, said.name)
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
    kind: str, seed: int, first: int, last: int, said: str
) -> tuple[list[dict[str, Any]], str]:
    """The results that one process gave, and CRASH or HANG if it did not end well; what it prints
    goes to the file `said`."""
    results, theirs = CONTEXT.Pipe(duplex=False)
    given = (kind, seed, first, last, theirs)
    process = CONTEXT.Process(target=_in_session, args=(said, work, *given))
    process.start()
    theirs.close()
    done: list[dict[str, Any]] = []
    with results:
        try:
            while results.poll(PATIENCE_S):
                done.append(results.recv())
        except (EOFError, OSError):  # OSError: it ended in the middle of a result
            process.join()
            return done, "CRASH" if process.exitcode < 0 else ""
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return done, "HANG"


def _in_session(said: str, work: Callable[..., None], *given: Any) -> None:
    os.setsid()
    with open(said, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*given)


def work(kind: str, seed: int, first: int, last: int, results: Connection) -> None:
    """Sends the result of each case as soon as it is over."""
    import fuzz_case

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        data = fuzz_case.make(kind, Path(folder))
        for number in range(first, last):
            result = fuzz_case.run_case(data, kind, seed, number)
            result["what"] = result["what"].replace(folder, "")
            results.send(result)


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


if __name__ == "__main__":
    sys.exit(main())
