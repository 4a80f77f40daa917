"""engine/signals.py: what a signal does before and while a run trains."""

import os
import signal
import time

import pytest

from engine import signals
from engine.signals import StopAgreement, StopRequest, stop_requests


def test_before_the_first_step_a_signal_ends_the_process_at_once(
    capsys: pytest.CaptureFixture,
) -> None:
    ends: list[int] = []
    StopRequest(ends.append).hear(signal.SIGTERM)
    StopRequest(ends.append).hear(signal.SIGINT)
    assert ends == [75, 130]
    assert capsys.readouterr().err.splitlines() == [
        "stopped by SIGTERM, nothing saved", "stopped by SIGINT, nothing saved",
    ]  # fmt: skip


def test_later_it_is_kept_until_somebody_looks_however_often_it_comes() -> None:
    ends: list[int] = []
    request = StopRequest(ends.append)
    request.learn(signal.SIGTERM)
    assert not request.asked, "another rank may be further: this one still prepares"
    request.defer()
    for _ in range(3):  # Slurm signals launcher and ranks, and the launcher passes its signal on
        request.hear(signal.SIGUSR1)
        request.hear(signal.SIGTERM)
    assert request.asked == signal.SIGUSR1 and not ends
    assert StopAgreement(request).after_step() == StopAgreement(request).now() == signal.SIGUSR1


def test_a_second_ctrl_c_ends_the_process_but_not_an_echo_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[int] = []
    request = StopRequest(ends.append)
    request.defer()
    clock = iter([10.0, 10.4, 10.9, 12.0])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(clock))
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        request.hear(number)
    assert not ends
    request.hear(signal.SIGINT)
    assert ends == [130]


def test_ctrl_c_here_is_no_second_one_where_another_rank_told_of_the_first() -> None:
    ends: list[int] = []
    request = StopRequest(ends.append)
    request.defer()
    request.learn(signal.SIGINT)
    request.hear(signal.SIGINT)
    assert request.asked == signal.SIGINT and not ends


def test_signals_are_heard_within_and_handled_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with stop_requests() as request:
        request.defer()
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 120
        while not request.asked and time.monotonic() < deadline:
            time.sleep(0.01)
    assert request.asked == signal.SIGUSR1
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
