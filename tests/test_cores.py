"""pipelines/cores.py; its control groups: tests/test_doctor_host.py."""

import pytest

from pipelines import cores


@pytest.mark.parametrize(
    "allowed, quota, usable",
    [(8, None, 8), (8, 2.5, 2), (2, 6.0, 2), (8, 0.5, 1), (1, None, 1)],
)
def test_the_tighter_of_affinity_and_quota_counts(monkeypatch, allowed, quota, usable):
    monkeypatch.setattr(cores, "allowed_cores", lambda: allowed)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cores.usable_cores() == usable
