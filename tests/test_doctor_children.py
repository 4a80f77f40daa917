"""Whatever a probe does, the doctor learns how it ended, and goes on."""

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from engine import doctor_children
from engine.doctor_children import Outcome, Probe, run_probes

SAY = "import os, sys, json, signal, time; say = lambda **f: os.write(int(sys.argv[1]), json.dumps(f).encode() + b'\\n'); "  # noqa: E501


def probe_of(name: str, code: str) -> Probe:
    return Probe(name, program=(sys.executable, "-c", SAY + code))


def outcome_of(code: str, timeout_s: float = 300.0) -> Outcome:
    return run_probes([probe_of("p", code)], timeout_s, 1, lambda *state: None)["p"]


def test_what_is_said_is_gathered_and_the_last_word_counts():
    outcome = outcome_of("say(a=1, b=[2]); say(a=3); say(done=True)")
    assert outcome == Outcome({"a": 3, "b": [2], "done": True})


def test_a_segmentation_fault_is_named_with_what_was_being_done():
    outcome = outcome_of("say(a=1, doing='decoding'); os.kill(os.getpid(), signal.SIGSEGV)")
    assert outcome.get("a") == 1
    assert outcome.problem == "ended by SIGSEGV while decoding"


def test_an_abort_shows_the_last_line_it_printed():
    outcome = outcome_of("print('first\\nno symbol x', flush=True); os.abort()")
    assert outcome.problem == "ended by SIGABRT: no symbol x"


@pytest.fixture
def waits(tmp_path, monkeypatch):
    """Code that waits for ever; time passes for the doctor only then."""
    mark = tmp_path / "waits"
    clock = SimpleNamespace(monotonic=lambda: 99.0 if mark.exists() else 0.0, sleep=time.sleep)
    monkeypatch.setattr(doctor_children, "time", clock)
    return f"open({str(mark)!r}, 'w').close(); time.sleep(999)"


def test_a_hang_is_ended_with_all_that_it_started(waits):
    code = (
        f"pid = os.fork(); say(pid=pid) if pid else time.sleep(999); say(doing='waiting'); {waits}"
    )
    outcome = outcome_of(code, timeout_s=1.0)
    assert outcome.problem == "no answer within 1 s while waiting"
    wait_until_gone(outcome.get("pid"))


def test_what_a_probe_leaves_behind_is_ended_too():
    outcome = outcome_of("pid = os.fork(); say(pid=pid, done=True) if pid else time.sleep(99)")
    assert not outcome.problem
    wait_until_gone(outcome.get("pid"))


def test_ignored_termination_and_torn_lines_do_no_harm(waits):
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{ignore}; os.write(int(sys.argv[1]), b'{{\"a\": 1'); {waits}"
    assert outcome_of(code, timeout_s=0.5) == Outcome({}, "no answer within 0.5 s")


def test_an_exit_without_the_last_word_is_a_problem():
    assert outcome_of("sys.exit(0)").problem == "ended with status 0"
    assert outcome_of("sys.exit(3)").problem == "ended with status 3"


def test_output_beyond_any_pipe_does_not_stop_a_probe():
    outcome = outcome_of("print('x' * 10**6); say(a='y' * 10**5); say(done=True)")
    assert not outcome.problem and len(outcome.get("a")) == 10**5


def test_others_go_on_while_one_waits_and_progress_names_it(tmp_path):
    seen = []
    os.mkfifo(tmp_path / "pipe")
    pipe = f"open({str(tmp_path / 'pipe')!r}, "
    probes = [
        probe_of("waits", f"{pipe}'r').read(); say(done=True)"),
        probe_of("ends", "say(done=True)"),
        probe_of("follows", f"{pipe}'w').close(); say(done=True)"),
    ]
    outcomes = run_probes(probes, 60.0, 2, lambda *state: seen.append(state))
    assert not any(outcome.problem for outcome in outcomes.values())
    assert (1, 3, ["waits", "follows"]) in seen or (1, 3, ["waits"]) in seen
    assert seen[-1] == (3, 3, [])


def test_an_interrupted_doctor_leaves_no_probe_behind():
    children = []
    others = set(child_pids())  # of other tests of this process

    def interrupt(done: int, total: int, names: list[str]) -> None:
        children.extend(set(child_pids()) - others)
        raise KeyboardInterrupt

    try:
        run_probes([probe_of("p", "time.sleep(99)")], 30.0, 1, interrupt)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("not interrupted")
    assert children
    for pid in children:
        wait_until_gone(pid)


def test_a_missing_package_is_no_finding_of_the_probe_itself():
    outcome = outcome_of("say(missing=\"No module named 'torch'\"); sys.exit(1)")
    assert outcome.unchecked == "not checked: No module named 'torch'" and not outcome.problem


def test_the_probes_of_the_doctor_run_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_probes([Probe("driver")], 30.0, 1, lambda *state: None)["driver"]
    assert not outcome.problem and "libcuda" in outcome.said


def child_pids() -> list[int]:
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def wait_until_gone(pid: int) -> None:
    """A process that another one has to collect may show for a moment more, as a zombie."""
    for _ in range(12_000):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"process {pid} is still there")
