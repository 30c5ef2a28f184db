"""What a batch has freed is there for the next one, with glibc."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import resource
import numpy as np
from lstmstream.serve.freed_memory import keep_freed_memory

def batch():
    for array in [np.empty(1_500_000, np.uint8) for _ in range(20)]:
        array.fill(1)

keep_freed_memory()
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""
PAGES = 20 * 1_500_000 // 4096


def faults_per_batch(**environment: str) -> int:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return int(found.stdout)


def test_a_batch_gets_the_pages_of_the_one_before() -> None:
    assert faults_per_batch() < PAGES / 20


def test_what_the_environment_says_counts() -> None:
    """The system counts a page of 4 KiB as one fault, and a huge page as one too, so any are enough."""
    assert faults_per_batch(MALLOC_TRIM_THRESHOLD_="100000") > faults_per_batch() + 5
