"""What every test and every program that it starts finds, however the suite was started: imported
first by conftest.py, in every process of pytest, before torch reads its part of it."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
UNSET = (
    "LANG", "LANGUAGE", "TZ", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONWARNINGS",
    "PYTHONUNBUFFERED", "PYTHONHASHSEED", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
)  # fmt: skip
PREFIXES = ("TORCHELASTIC_", "SLURM_", "LC_")
OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def settle(folder: Path) -> None:
    """Gives this process, and what it starts, signals as a shell gives them (in the background of a
    script SIGINT is ignored by inheritance), the C locale in UTF-8, a home and a folder for
    temporary files below `folder`, and files that their owner can read."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for name in list(os.environ):
        if name in (*UNSET, *OF_RANKS) or name.startswith(PREFIXES):
            del os.environ[name]
    os.environ |= {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    # torch's compiler otherwise starts processes that import torch, for a single kernel too.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    for name, variable in (("home", "HOME"), ("temporary", "TMPDIR")):
        (folder / name).mkdir()
        os.environ[variable] = str(folder / name)
    os.umask(0o022)


FOLDER = Path(tempfile.mkdtemp(prefix="rgbd-"))
settle(FOLDER)


def clear() -> None:
    """Removes home and temporary files."""
    shutil.rmtree(FOLDER, ignore_errors=True)
