"""engine/roll_call.py: the ranks of one launch, and no others, come to know each other."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from engine.roll_call import roll_call

LONG = timedelta(seconds=60)


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def call(server: TCPStore, ranks: list[int], world_size: int, timeout: timedelta) -> list:
    """The roll call of these ranks, each with a connection of its own: names, or errors."""

    def one(rank: int) -> object:
        store = TCPStore("127.0.0.1", server.port, wait_for_workers=False)
        try:
            return roll_call(store, rank, world_size, timeout)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, ranks))


def test_every_launch_has_a_name_of_its_own_that_all_ranks_know(server: TCPStore) -> None:
    names = [call(server, [0, 1, 2], 3, LONG) for _ in range(3)]
    assert all(len(set(launch)) == 1 for launch in names)
    assert len({launch[0] for launch in names}) == 3
    assert len(set(call(server, [0, 1], 2, LONG))) == 1, "fewer ranks than before"


def test_what_a_killed_launch_left_in_the_store_is_not_believed(server: TCPStore) -> None:
    soon = timedelta(seconds=0.3)
    call(server, [1, 2], 3, soon)  # two words that nobody answered
    lone = call(server, [0, 1], 3, soon)  # rank 0 answers the old word of rank 2
    assert lone[0].startswith("rank 2 did not start within 0 s; see what")
    assert lone[1].startswith("rank 0, or a rank it waits for, did not start within 0 s")
    names = call(server, [2, 0, 1], 3, LONG)
    assert len(set(names)) == 1 and len(names[0]) == 32
