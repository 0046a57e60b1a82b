"""What a process frees during passes of an encoder on the CPU, and who gets it."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading

import pytest

from clpdd.runtime.heap import freed_memory_kept

PAGES_TAKEN = """
import contextlib, resource, torch
from clpdd.runtime.heap import freed_memory_kept

def taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        (torch.ones(16, 2**20) + 1).sum()  # two tensors of 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * 4 // 1024  # MiB

outside = taken()
before = resident()
with freed_memory_kept(), freed_memory_kept():
    taken()
    inside, during = taken(), resident()
print(outside, inside, before, during, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
def test_passes_take_no_new_pages_and_afterwards_the_system_gets_them_back() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES_TAKEN], capture_output=True, text=True, check=True)
    outside, inside, before, during, after = map(int, done.stdout.split())
    assert inside < outside / 4  # none, but for a tensor that finds no free piece of its size
    assert during > before + 100
    assert after < before + 20


def test_it_may_be_nested_entered_by_threads_and_left_by_an_error() -> None:
    with pytest.raises(ZeroDivisionError), freed_memory_kept():
        1 / 0  # noqa: B018

    def enter() -> None:
        for _ in range(50):
            with freed_memory_kept(), freed_memory_kept():
                pass

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    from clpdd.runtime import heap

    assert heap._held == 0
