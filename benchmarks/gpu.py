"""Events a second with a GPU: state rows on the host and on the GPU, against the CPU, and whether the scores agree.

    python -m benchmarks.gpu [--batches N] [--events N] [--keys N] [--zipf A] [--hidden H] [--layers L]

The scorer alone, without Kafka and JSON; keys have frequencies by Zipf's law, or all the same with `--zipf 0`. Each way
is timed in turn, several times, and its best round counts. Without a GPU, the code for its memory runs on the memory of
the host: that tests it, and says nothing of a GPU's speed. Exit code 1 if scores differ by more than TOLERANCE.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from lstmstream.model import load_model
from lstmstream.records import Floats, Observations
from lstmstream.serve.device_choice import make_observations
from lstmstream.serve.device_mover import DeviceMover
from lstmstream.serve.fast_rounds import HostMover, Mover
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.step import OnnxStep
from tests.models import random_model

ROUNDS = 3
TOLERANCE = 1e-4  # of a score, after all events of its key; a single step is within 1e-5
WAYS = ("rows on the host", "rows on the device")


def score_all(step: OnnxStep, mover: Mover, batches: list[Observations]) -> tuple[float, Floats]:
    """Events a second, all batches but the first; the scores of the last one."""
    scorer = Scorer(step, Meaning(None, "apply", None), mover=mover)
    scorer.states.open(0)
    begin_s = 0.0
    for number, batch in enumerate(batches):
        if number == 1:
            begin_s = time.perf_counter()
        score = scorer.score(batch).predictions.score
        scorer.commit()
    seconds = time.perf_counter() - begin_s
    return sum(len(batch.index) for batch in batches[1:]) / seconds, score


def main() -> int:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=11)
    parser.add_argument("--events", type=int, default=4096)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--zipf", type=float, default=1.0)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(
            str(random_model(Path(folder), hidden=args.hidden, layers=args.layers, numbers=("a", "b", "c")))
        )
        steps = [OnnxStep(model, device="cpu")]
        gpu = OnnxStep(model, device="auto")
        if gpu.device == "cuda":
            steps.append(gpu)
    shape = {"batches": args.batches, "events": args.events, "keys": args.keys, "zipf": args.zipf}
    batches = list(make_observations(model.card, **shape))
    best: dict[tuple[str, str], float] = {}
    scores: dict[tuple[str, str], Floats] = {}
    for _ in range(ROUNDS):
        for step in steps:
            movers: tuple[Mover, ...] = (HostMover(step), DeviceMover(step))
            for way, mover in zip(WAYS, movers, strict=True):
                rate, scores[step.device, way] = score_all(step, mover, batches)
                best[step.device, way] = max(rate, best.get((step.device, way), 0.0))
    wanted = scores["cpu", WAYS[0]]
    worst = 0.0
    for (device, way), rate in best.items():
        difference = float(np.abs(scores[device, way] - wanted).max())
        worst = max(worst, difference)
        print(f"{device:5} {way:20} {rate:12,.0f} events/s   largest difference of a score {difference:.1e}")
    print(f"scores agree within {TOLERANCE:g}" if worst <= TOLERANCE else f"scores differ by {worst:g}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
