"""tests/faults.py at one moment of each fault that no other test injects; all of them at twenty
moments: the table of the README."""

import pytest

from faults import Bench, table


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill_all", "kill_in_mid_save"])
def test_a_run_ends_bit_for_bit_as_the_one_that_nothing_befell(bench: Bench, fault: str) -> None:
    outcome = bench.outcome(fault, 0)
    assert outcome["as_expected"] and not outcome["hung"], outcome["problem"]
    assert "| 1 of 1 | 0 |" in table([outcome])
