"""tests/faults.py at one moment of the fault that no other test injects; all of them at twenty
moments: the table of the README."""

from pathlib import Path

import pytest

from faults import Bench, table


@pytest.mark.slow
def test_a_run_ends_bit_for_bit_as_the_one_that_nothing_befell(tmp_path: Path) -> None:
    outcome = Bench(tmp_path, rank_counts=[0]).outcome("kill_in_mid_save", 0)
    assert outcome["as_expected"] and not outcome["hung"], outcome["problem"]
    assert "| 1 of 1 | 0 |" in table([outcome])
