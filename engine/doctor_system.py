"""Rows about the system: processors, memory, limits, disks."""

from collections.abc import Iterator

from engine.doctor_facts import Facts
from engine.doctor_gpu import ENOUGH_SHM
from engine.doctor_host import Disk
from engine.doctor_rows import ABSENT, FAIL, OK, WARN, Row, gib

LEAST_MEMORY = 4 * 2**30
LEAST_FILES = 1024
SPARE_FILES = 512
"""Beside a pack's shards, of which each is opened once and stays open."""
LEAST_DISK = {"run directory": 2**30, "caches": 2**27, "temporary files": 2**30}
"""Bytes below which a disk is nearly full."""
CHECKPOINTS = 6
"""Three kept, best, last, and one being written."""
TIGHT = 0.9
"""Share of a memory that an estimate may fill: workspaces and the loader come on top."""


def processors_row(facts: Facts) -> Row:
    """What this process may use, against the threads that the config asks for."""
    host = facts.host
    usable = min(host.allowed, host.quota or host.allowed)
    found = f"{host.processors}"
    if usable < host.processors:
        found = f"{usable:g} of {host.processors} (control group or affinity)"
    threads = facts.local_ranks * facts.config.get("workers", 0)
    if threads <= usable:
        return Row("processors", OK, found)
    return Row(
        "processors", WARN, f"{found}, {threads} loader threads (data.workers)",
        "threads beyond the processors wait for each other",
        f"{train_command(facts)} data.workers=0",
    )  # fmt: skip


def memory_row(facts: Facts) -> Row:
    """Of the host; where training is on the CPU, against what a step needs."""
    host, config = facts.host, facts.config
    sizes = [size for size in (host.memory, host.memory_limit) if size]
    if not sizes:
        return Row("memory", ABSENT, "not checked: the system does not tell")
    limit, ranks = min(sizes), facts.local_ranks
    found = gib(limit)
    if host.memory_limit and host.memory_limit == limit:
        found += " by the control group"
    if host.memory_available is not None:
        found += f", {gib(min(host.memory_available, limit))} free"
    need = ranks * config.get("memory_bytes", 0.0) if config.get("device") == "cpu" else 0.0
    if config.get("cache") == "host":
        need += ranks * config.get("cache_gb", 0.0) * 1e9
    mend = facts.place.mend("memory")
    if need:
        found += f"; {gib(need)} needed by {ranks} {'ranks' if ranks > 1 else 'rank'}"
    if need > limit:
        cached = f"{train_command(facts)} data.cache=none"
        mend = cached if config.get("cache") == "host" else smaller_step(facts, limit / ranks)
        return Row("memory", FAIL, found, "the system ends a process that takes more", mend)
    if limit < LEAST_MEMORY:
        return Row("memory", WARN, found, "torch, DALI and a loader take some 3 GiB", mend)
    return Row("memory", OK, found)


def shared_memory_row(facts: Facts) -> Row:
    """NCCL's way between GPUs; the loader works in threads and needs none."""
    host = facts.host
    if host.shm is None:
        found = "no /dev/shm"
    else:
        found = f"{gib(host.shm)} in /dev/shm, {gib(host.shm_free)} free"
        if host.shm_free >= ENOUGH_SHM:
            return Row("shared memory", OK, found)
    if facts.num_gpus < 2:
        return Row("shared memory", OK, f"{found}; only several GPUs need more")
    return Row(
        "shared memory", WARN, found, "NCCL takes it between GPUs and ends where it is too small",
        facts.place.mend("shm"),
    )  # fmt: skip


def open_files_row(facts: Facts) -> Row:
    """Limit of this process."""
    soft, hard = facts.host.open_files
    shards = facts.config.get("shards", 0)
    need = max(LEAST_FILES, shards + SPARE_FILES if shards else 0)
    found = "no limit" if soft < 0 else f"{soft}, at most {'any' if hard < 0 else hard}"
    if shards:
        found += f"; {need} needed for {shards} shards"
    if soft < 0 or soft >= need:
        return Row("open files", OK, found)
    raised = f"ulimit -n {max(need, 65536) if hard < 0 else min(max(need, 65536), hard)}"
    mend = raised if hard < 0 or hard >= need else facts.place.mend("open files")
    why = "each thread of the loader holds files, and of a pack every shard stays open"
    return Row("open files", FAIL if shards and soft < need else WARN, found, why, mend)


def locked_memory_row(facts: Facts) -> Row:
    """InfiniBand's need alone."""
    limit = facts.host.locked_memory
    found = "no limit" if limit < 0 else gib(limit)
    if not facts.host.infiniband:
        return Row("locked memory", OK, f"{found}; no InfiniBand here that would need it")
    if limit < 0:
        return Row("locked memory", OK, found)
    return Row(
        "locked memory", WARN, found, "NCCL over InfiniBand locks its buffers in memory",
        facts.place.mend("locked memory"),
    )  # fmt: skip


def disk_rows(facts: Facts) -> Iterator[Row]:
    """Where a run writes."""
    for name, disk in facts.host.disks.items():
        yield _disk_row(facts, name, disk)


def _disk_row(facts: Facts, name: str, disk: Disk) -> Row:
    found = f"{gib(disk.free)} free for {disk.path}"
    mend = {
        "run directory": f"{train_command(facts)} train.run_dir=/LARGER/DISK",
        "caches": f"{train_command(facts)} data.cache_dir=/LARGER/DISK",
        "temporary files": "export TMPDIR=/LARGER/DISK",
    }[name]
    least, why = LEAST_DISK[name], {
        "run directory": "checkpoints and metrics are written there",
        "caches": "without it each start scans the data set anew",
        "temporary files": "torch.compile and the choice of data.source write there",
    }[name]  # fmt: skip
    worst = WARN if name == "caches" else FAIL
    if disk.problem:
        return Row(f"disk: {name}", worst, f"{disk.path}: {disk.problem}", why, mend)
    size = facts.config.get("checkpoint_bytes", 0)
    if name == "run directory" and size:
        least = CHECKPOINTS * size
        found += f"; a checkpoint takes {gib(size)}"
        if disk.free < 2 * size:  # the last one, and the next beside it
            return Row(f"disk: {name}", FAIL, found, why, mend)
    if disk.free < least:
        return Row(f"disk: {name}", WARN, found, why, mend)
    return Row(f"disk: {name}", OK, found)


def train_command(facts: Facts) -> str:
    """How training is started, with the config where it is known."""
    ranks = facts.local_ranks
    start = f"torchrun --nproc_per_node={ranks}" if ranks > 1 else "python"
    return f"{start} engine/train.py --config {facts.config_path or 'CONFIG'}"


def smaller_step(facts: Facts, room: float) -> str:
    """Training with as many clips at a time as fit into so many bytes."""
    clips, need = facts.config.get("clips"), facts.config.get("memory_bytes")
    return f"{train_command(facts)} train.micro_batch={max(int(clips * TIGHT * room / need), 1)}"
