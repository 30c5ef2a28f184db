"""`device.device: auto` where there is a GPU: which scores faster, it or the CPU, is measured at the start.

A GPU needs many keys in a round, or a large model, to be the faster one: each round is a call of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import numpy as np

from lstmstream.model import Card
from lstmstream.records import Observations
from lstmstream.serve.model_checks import probe
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.step import OnnxStep

BATCHES = 4  # after one that is not timed
KEYS = 100_000
ZIPF = 1.0  # exponent of the keys' frequencies: a few keys have many events
MAX_EVENTS = 10_000  # of a batch

log = logging.getLogger(__name__)


def choose_step(
    cpu: OnnxStep, gpu: OnnxStep, *, events: int, clock_s: Callable[[], float] = time.perf_counter
) -> OnnxStep:
    """The faster of the two, with batches of so many events; the log has both times."""
    events = min(events, MAX_EVENTS)
    cpu_s, gpu_s = (_seconds_per_batch(step, events, clock_s) for step in (cpu, gpu))
    chosen = gpu if gpu_s < cpu_s else cpu
    log.info(
        "device.device is auto, and the %s is taken: %d events take %.1f ms on the CPU and %.1f ms on the GPU",
        "GPU" if chosen is gpu else "CPU",
        events,
        cpu_s * 1e3,
        gpu_s * 1e3,
    )
    return chosen


def _seconds_per_batch(step: OnnxStep, events: int, clock_s: Callable[[], float]) -> float:
    scorer = Scorer(step, Meaning(None, "apply", None))
    scorer.states.open(0)
    batches = list(make_observations(step.card, batches=1 + BATCHES, events=events, keys=KEYS, zipf=ZIPF))
    begin_s = 0.0
    for number, batch in enumerate(batches):
        if number == 1:
            begin_s = clock_s()
        scorer.score(batch)
        scorer.commit()
    return (clock_s() - begin_s) / BATCHES


def make_observations(card: Card, *, batches: int, events: int, keys: int, zipf: float) -> Iterator[Observations]:
    """Batches of one partition with plausible features; the n-th most frequent key has a weight of 1 / n ** `zipf`."""
    random = np.random.default_rng(20260105)
    weights = np.cumsum(1 / np.arange(1, keys + 1) ** zipf)
    given = probe(card, rows=events)
    numbers = np.arange(events, dtype=np.int64)
    for start in range(0, batches * events, events):
        drawn = np.searchsorted(weights, random.random(events) * weights[-1])
        names: list[bytes | None] = [b"%d" % key for key in drawn.tolist()]
        offsets = start + numbers
        yield Observations(numbers, numbers * 0, offsets, names, offsets, given.x, given.categories)
