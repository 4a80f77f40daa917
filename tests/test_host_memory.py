"""engine/host_memory.py: what one step frees, the next one gets without asking the system."""

from forked import run_code

PAGE_FAULTS = """
import resource, torch
from engine.host_memory import keep_freed_memory
keep_freed_memory()
def touch():
    torch.zeros(32 << 20, dtype=torch.uint8)
for _ in range(20):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 5 * (32 << 20) // 4096


def test_freed_tensors_are_reused_without_page_faults():
    done = run_code(PAGE_FAULTS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 0.01 * PAGES  # without the call: all of them
