"""The trainer of `lstmstream train` beside two plain PyTorch loops: CPU seconds per epoch and to the same loss.

    python -m benchmarks.training_loops [--quick] [--rounds 3]

*padded*: windows of 64 events of each key, padded to 64, in a DataLoader, each from an empty state. *packed*: packed
sequences, 64 events of each key at a time, with carried states, keys of similar length together. All three start from
the same weights, with the same network, optimizer, learning rate, batch size and bound on the gradient, and on one
thread; they take turns within each round. An epoch's time includes its validation, which for all of them runs each key
as one sequence. The loops have their inputs ready as tensors; the trainer makes its own from the events in every
epoch. Seconds are of CPU time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lstmstream.train.dataset import Dataset, prepare_dataset
from lstmstream.train.factory import make_network, make_trainer
from lstmstream.train.schema import validate_training
from lstmstream.train.trainer import Trainer
from tests.train.packed_loop import PlainNetwork, Sequence, mean_loss, sequences_of_split, train_epoch

STEPS, HIDDEN, LEARNING_RATE, CLIP = 64, 32, 3e-3, 1.0
HELD_OUT = 0.15  # of the events of each key, or of the keys
ONE = torch.ones(2)  # no class weights
SAME_LOSS = 0.02  # relative; what "about the same" means


@dataclass(frozen=True)
class History:
    """Events of keys, and the loss masks of both splits."""

    lengths: np.ndarray  # [K]
    numbers: np.ndarray  # [N, 2] float32
    label: np.ndarray  # [N]
    trained: np.ndarray  # [N] bool
    epochs: int


@dataclass(frozen=True)
class Run:
    """One training: the CPU seconds and the validation loss of each epoch."""

    seconds: list[float]
    losses: list[float]

    def seconds_to(self, loss: float) -> float:
        """Time until the end of the first epoch with this validation loss or a lower one."""
        return sum(self.seconds[: 1 + next(at for at, found in enumerate(self.losses) if found <= loss)])


def make_history(lengths: np.ndarray, epochs: int, *, by_key: bool, decay: float | None = None) -> History:
    """Two normal numbers; the label depends on the sum of the key's last three first numbers, so a state is of use.

    With `decay` it depends on the sum of all of them, each weighted by `decay` to the power of its age in events.
    """
    random = np.random.default_rng(0)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = np.arange(len(starts)) - starts  # place in the key
    numbers = random.normal(size=(len(starts), 2)).astype(np.float32)
    past = numbers[:, 0].copy()
    if decay is None:
        for back in (1, 2):
            past += np.where(at >= back, np.roll(numbers[:, 0], back), 0)
    else:
        for event in range(1, len(past)):
            past[event] += decay * past[event - 1] if at[event] else 0
        past *= np.sqrt(3 * (1 - decay**2))  # as wide as the sum of three
    label = random.random(len(starts)) < 1 / (1 + np.exp(-2 * (past - 1.5)))
    if by_key:
        trained = np.repeat(random.random(len(lengths)) >= HELD_OUT, lengths)
    else:
        trained = at < (1 - HELD_OUT) * np.repeat(lengths, lengths)
    return History(lengths, numbers, label, trained, epochs)


def histories(*, quick: bool) -> Iterator[tuple[str, History]]:
    """Few long keys (twice), many short ones, and both with all lengths between."""
    random = np.random.default_rng(1)
    part = 10 if quick else 1
    yield "10 long keys", make_history(np.full(10, 8000 // part), 8, by_key=False)
    yield "10 long keys, long memory", make_history(np.full(10, 8000 // part), 16, by_key=False, decay=0.98)
    yield f"{100_000 // part:,} short keys", make_history(random.integers(2, 6, 100_000 // part), 3, by_key=True)
    mixture = np.minimum(2 + random.pareto(0.8, 3000 // part) * 4, 4000).astype(np.int64)
    yield f"{len(mixture):,} uneven keys", make_history(mixture, 4, by_key=True)


def prepare(history: History, folder: Path) -> Dataset:
    """The events as `lstmstream train` reads them from a file."""
    keys = np.repeat(np.arange(len(history.lengths)), history.lengths)
    frame = pl.DataFrame(
        {
            "key": keys,
            "time": 1_600_000_000 + np.arange(len(keys)),
            "first": history.numbers[:, 0],
            "second": history.numbers[:, 1],
            "label": history.label.astype(np.int8),
            "part": np.where(history.trained, "train", "validation"),
        }
    )
    frame.write_parquet(folder / "history.parquet")
    config = {
        "name": "loops",
        "task": "classify",
        "data": {"path": "history.parquet", "key": "key", "timestamp": "time"},
        "features": {"numbers": [{"name": name, "scale": "none"} for name in ("first", "second")]},
        "target": {"field": "label"},
        "split": {"by": "given", "field": "part"},
        "model": {"hidden": HIDDEN},
        "training": {"epochs": history.epochs, "patience": history.epochs, "steps": STEPS, "schedule": "none"}
        | {"learning_rate": LEARNING_RATE, "clip": CLIP, "monitor": "loss", "device": "cpu", "threads": 1},
    }
    return prepare_dataset(validate_training(config, folder))


def make_sequences(history: History) -> tuple[list[Sequence], list[Sequence]]:
    """The training and the validation sequences, as the packed loop takes them."""
    columns = (history.numbers, history.label.astype(np.float32), history.trained)
    sizes = history.lengths.tolist()
    inputs, targets, trained = (torch.from_numpy(column).split(sizes) for column in columns)
    whole = [Sequence(*one) for one in zip(inputs, targets, trained, strict=True)]
    return sequences_of_split(whole, list(trained)), sequences_of_split(whole, [~mask for mask in trained])


def padded_windows(sequences: list[Sequence]) -> TensorDataset:
    """Inputs [W, 64, D], targets and loss mask [W, 64] of all windows, zero in the padding."""
    windows = [one.cut(low, low + STEPS) for one in sequences for low in range(0, len(one.inputs), STEPS)]
    padded = []
    for name in ("inputs", "targets", "in_loss"):
        first = getattr(windows[0], name)
        values = torch.zeros(len(windows), STEPS, *first.shape[1:], dtype=first.dtype)
        for at, window in enumerate(windows):
            values[at, : len(window.inputs)] = getattr(window, name)
        padded.append(values)
    return TensorDataset(*padded)


def train_padded_epoch(
    network: PlainNetwork, optimizer: torch.optim.Optimizer, batches: DataLoader[tuple[Tensor, ...]]
) -> None:
    """One pass over the windows, with the mean loss of the real events."""
    for inputs, targets, mask in batches:
        output, _ = network.rnn(inputs)
        loss = nn.functional.binary_cross_entropy_with_logits(network.head(output)[..., 0][mask], targets[mask])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()


def run_trainer(trainer: Trainer) -> Run:
    """The product."""
    ends = [time.process_time()]
    history = trainer.run(lambda _: None, lambda _: ends.append(time.process_time()), lambda: False).history
    return Run(np.diff(ends).tolist(), [epoch["validation_loss"] for epoch in history])


def run_loop(
    trainer: Trainer,
    validation: list[Sequence],
    epochs: int,
    train_one: Callable[[PlainNetwork, torch.optim.Optimizer], None],
) -> Run:
    """A plain loop from the weights that the trainer has."""
    network = PlainNetwork(2, HIDDEN, 1)
    network.rnn.load_state_dict(trainer.network.layers[0].rnn.state_dict())
    network.head.load_state_dict(trainer.network.head.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    seconds, losses = [], []
    for _ in range(epochs):
        started = time.process_time()
        train_one(network, optimizer)
        losses.append(mean_loss(network, validation, task="classify", weights=ONE))
        seconds.append(time.process_time() - started)
    return Run(seconds, losses)


def compare(history: History, folder: Path, rounds: int) -> tuple[dict[str, list[Run]], str]:
    """The runs of the three, which take turns, and the batches in words."""
    dataset = prepare(history, folder)
    train, validation = make_sequences(history)
    windows = padded_windows(train)
    runs: dict[str, list[Run]] = {"lstmstream": [], "packed": [], "padded": []}
    for number in range(rounds):
        trainer = make_trainer(make_network(dataset), dataset, None)
        size = trainer.batch_size
        loader = DataLoader(windows, batch_size=size, shuffle=True)

        def packed(network: PlainNetwork, optimizer: torch.optim.Optimizer, size: int = size) -> None:
            options = {"task": "classify", "weights": ONE, "batch": size, "steps": STEPS, "clip": CLIP}
            train_epoch(network, optimizer, train, **options)

        def padded(network: PlainNetwork, optimizer: torch.optim.Optimizer, loader: object = loader) -> None:
            train_padded_epoch(network, optimizer, loader)

        torch.manual_seed(number)
        # the loops first: they copy the weights that the trainer starts from
        for name, one in (("packed", packed), ("padded", padded)):
            runs[name].append(run_loop(trainer, validation, history.epochs, one))
        runs["lstmstream"].append(run_trainer(trainer))
    return runs, trainer.batch_text


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def print_table(title: str, history: History, runs: dict[str, list[Run]], batch_text: str) -> None:
    """One table as Markdown; ratios are medians over the rounds, above 1 where the trainer is faster."""
    events = int(history.trained.sum())
    target = max(min(run.losses) for each in runs.values() for run in each)  # each keeps its best epoch
    print(f"\n**{title}**: {len(history.label):,} events, {events:,} to train on; {batch_text}\n")
    print(f"| | events/s | ratio | CPU seconds to loss {target:.4f} | ratio | lowest validation loss |")
    print("|" + " --- |" * 6)
    for name, each in runs.items():
        speeds = [events * len(run.seconds) / sum(run.seconds) for run in each]
        waits = [run.seconds_to(target) for run in each]
        own = runs["lstmstream"]
        faster = [sum(run.seconds) / sum(mine.seconds) for run, mine in zip(each, own, strict=True)]
        sooner = [wait / mine.seconds_to(target) for wait, mine in zip(waits, own, strict=True)]
        ratios = [f"{statistics.median(one):.2f}" for one in (faster, sooner)]
        lowest = spread([min(run.losses) for run in each], 4)
        print("|", " | ".join([name, spread(speeds, 0), ratios[0], spread(waits, 2), ratios[1], lowest]), "|")
    lowest_of_each = [statistics.median(min(run.losses) for run in each) for each in runs.values()]
    same = max(lowest_of_each) <= min(lowest_of_each) * (1 + SAME_LOSS)
    apart = f"{max(lowest_of_each) / min(lowest_of_each) - 1:.1%} apart"
    print(f"\nThe three reach {'about the same loss' if same else 'different losses'} ({apart}).", flush=True)


def main() -> None:
    """Compares on each of the histories and prints the tables."""
    parser = argparse.ArgumentParser(description="The trainer beside two plain PyTorch loops.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, one round")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 3)
    torch.set_num_threads(1)
    for title, history in histories(quick=options.quick):
        with tempfile.TemporaryDirectory(prefix="lstmstream-") as folder:
            print_table(title, history, *compare(history, Path(folder), rounds))


if __name__ == "__main__":
    main()
