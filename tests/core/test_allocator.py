"""Which allocator setting a training process takes."""

import subprocess
import sys

PROGRAM = """
import resource
from pipeline.core.allocator import keep_heap
print(keep_heap())
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(12):  # a heap takes some steps to find its shape
    before = faults()
    parts = [torch.empty(10_000_000 + 1000 * (step % 3)).fill_(1), torch.empty(9_000_000).fill_(1)]
    del parts
    last = faults() - before
print(last)
"""


def run(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_freed_memory_is_reused_without_page_faults() -> None:
    done, faults = run()
    assert done == "True"
    assert int(faults) < 1000  # 18,500 pages were written


def test_allocator_settings_of_the_environment_are_kept() -> None:
    done, faults = run(MALLOC_MMAP_THRESHOLD_="33554432")
    assert done == "False"
    assert int(faults) > 15_000
