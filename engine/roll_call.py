"""The processes of one launch meet in torchrun's store, apart from those of an earlier launch.

torchrun's store outlives the processes of a launch that failed, with all that they wrote: no key
there may be believed, and no variable of the environment tells launches apart (a restart is counted
by each node for itself, and not at all where nodes came or went).
"""

import os
import time
import uuid
from datetime import timedelta

from torch.distributed import Store, TCPStore

POLL_S = 0.05


def open_store(rank: int, timeout: timedelta) -> Store:
    """A connection of its own to the store that torchrun keeps, or rank 0 where nobody does."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not kept, timeout=timeout, wait_for_workers=False,
        multi_tenant=True,
    )  # fmt: skip


def roll_call(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Wait until all ranks of this launch are there -> a name for it, the same on all of them.

    Every rank writes a word that nobody used before and waits for the answer to just that word:
    rank 0 answers every word it finds, those of the dead too, until all ranks have repeated the
    name. Raises ValueError naming the ranks that did not come.
    """
    word = uuid.uuid4().hex
    store.set(f"here/{rank}", word)
    if rank == 0:
        _answer(store, word, world_size, timeout)
        return word
    try:
        store.wait([f"answer/{word}"], timeout)
        launch = store.get(f"answer/{word}").decode()
        store.set(f"{launch}/{rank}", "")
        store.wait([f"{launch}/complete"], timeout)
    except RuntimeError:  # of the store: nothing came in time
        raise ValueError(_missing(["rank 0, or a rank it waits for,"], timeout)) from None
    return launch


def _answer(store: Store, launch: str, world_size: int, timeout: timedelta) -> None:
    deadline = time.monotonic() + timeout.total_seconds()
    store.set(f"{launch}/0", "")
    while absent := [r for r in range(world_size) if not store.check([f"{launch}/{r}"])]:
        for rank in absent:
            if store.check([f"here/{rank}"]):
                store.set(f"answer/{store.get(f'here/{rank}').decode()}", launch)
        if time.monotonic() > deadline:
            raise ValueError(_missing([f"rank {rank}" for rank in absent], timeout))
        time.sleep(POLL_S)
    store.set(f"{launch}/complete", "")


def _missing(ranks: list[str], timeout: timedelta) -> str:
    return (
        f"{', '.join(ranks[:8])} did not start within {timeout.total_seconds():.0f} s; see what "
        "that process printed, and whether it still runs"
    )
