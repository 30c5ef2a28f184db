"""The trainer against a plain loop over packed sequences: twelve kinds of data, each drawn anew for each seed.

Both start from the same weights and have the same optimizer, but each its own order of keys and cuts: after the same
number of epochs the trainer's training and validation losses are not higher than chance explains. The differences are
taken seed by seed, because data and weights matter more than what is compared. With one data set for all seeds an order
of the batches can look better or worse than another only because of the events that happen to come last. As a table:

    python -m tests.train.test_packed_loop [SEEDS]
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.train.packed_loop import PlainNetwork, Sequence, mean_loss, sequences_of_split, train_epoch
from tests.train.test_trainer import dataset_and_trainer, run

pytestmark = pytest.mark.torch

LENGTHS = {  # of the keys
    "few long": [500] * 6,
    "many short": [24] * 120,
    "uneven": [600] * 2 + [50] * 20 + [8] * 100,
}
BATCH = {"few long": 3, "many short": 16, "uneven": 16}
STEPS = {"few long": 16, "many short": 4, "uneven": 16}
CASES = [
    *((task, shape, "none") for task in ("classify", "forecast", "anomaly") for shape in LENGTHS),
    *(("classify", shape, "balanced") for shape in LENGTHS),
]
SEEDS = 5
EPOCHS, HIDDEN, LEARNING_RATE, CLIP = 5, 8, 0.01, 1.0
TRAINED = 0.7  # of each key's events; the rest is for validation
SIGNAL = 4.0  # a load that says, by its sign, which mode the key is in until the next signal
MAX_GAP = 60  # between signals; on average they are further apart than STEPS
MAX_STANDARD_ERRORS = 3  # by which the trainer's loss may be the higher one
MAX_FRACTION = 0.1  # or by this fraction: a few differences can be alike by chance


@dataclass(frozen=True)
class Losses:
    """Losses in the last epoch [seeds]: on the training or on the validation split."""

    trainer: np.ndarray
    loop: np.ndarray

    @property
    def difference(self) -> float:
        """How much higher the trainer's loss is in the mean."""
        return float((self.trainer - self.loop).mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the difference."""
        return float((self.trainer - self.loop).std(ddof=1) / np.sqrt(len(self.loop)))


def series(shape: str, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each key: loads and labels, which depend on the last loads and on the mode.

    The mode is only to be seen at the signals, so that a state that gets lost between two batches costs much.
    """
    random = np.random.default_rng([7, seed])
    found = []
    for length in LENGTHS[shape]:
        load, usual, modes, next_signal = np.zeros(length), np.zeros(length + 2), np.zeros(length), 0
        for at in range(length):
            if at == next_signal:
                modes[at] = random.choice([-1, 1])
                load[at] = SIGNAL * modes[at]
                next_signal += int(random.integers(MAX_GAP // 3, MAX_GAP + 1))
            else:
                modes[at] = modes[at - 1]
                scale = 1.0 if usual[at + 1] > 0 else 0.6
                load[at] = 0.5 * usual[at + 1] - 0.3 * usual[at] + 0.5 * modes[at] + scale * random.normal()
                usual[at + 2] = load[at]
        logit = np.convolve(load, np.ones(3))[:length] - 1.5 + 4 * modes
        found.append((load.astype(np.float32), random.random(length) < 1 / (1 + np.exp(-logit))))
    return found


def write_history(file: Path, shape: str, seed: int) -> None:
    """The series as CSV; all keys begin and end at about the same time, and go over to validation at the same time."""
    frames = [
        pl.DataFrame(
            {
                "customer": [f"c{key}"] * len(load),
                "time": 1_600_000_000 + np.arange(len(load)) * 1_000_000 // len(load),
                "load": load,
                "label": label.astype(int),
                "part": np.where(np.arange(len(load)) < TRAINED * len(load), "train", "validation"),
            }
        )
        for key, (load, label) in enumerate(series(shape, seed))
    ]
    pl.concat(frames).sort("time").write_csv(file)


def sequences(shape: str, task: str, seed: int) -> tuple[list[Sequence], list[Sequence]]:
    """The training and the validation sequences, from the series themselves."""
    whole, masks = [], ([], [])
    for load, label in series(shape, seed):
        trained = np.arange(len(load)) < TRAINED * len(load)
        if task == "classify":
            targets, parts, usable = label, trained, np.ones(len(load), np.bool_)
        else:  # a forecast belongs where its target is
            targets, parts, usable = np.roll(load, -1), np.roll(trained, -1), np.arange(len(load)) < len(load) - 1
        whole.append(Sequence(torch.tensor(load)[:, None], torch.tensor(targets).float(), torch.tensor(usable)))
        masks[0].append(torch.tensor(parts & usable))
        masks[1].append(torch.tensor(~parts & usable))
    return sequences_of_split(whole, masks[0]), sequences_of_split(whole, masks[1])


def compare(folder: Path, task: str, shape: str, class_weights: str, seeds: int = SEEDS) -> tuple[Losses, Losses]:
    """The training and the validation losses of the trainer and the loop, from the same weights, with each seed."""
    losses = np.array([last_losses(folder, task, shape, class_weights, seed) for seed in range(seeds)])
    return Losses(*losses[:, 0].T), Losses(*losses[:, 1].T)


def last_losses(folder: Path, task: str, shape: str, class_weights: str, seed: int) -> np.ndarray:
    """The last epoch's losses [training, validation] x [trainer, loop]."""
    write_history(folder / "history.csv", shape, seed)
    train, validation = sequences(shape, task, seed)
    weights = torch.ones(2)
    if class_weights == "balanced":
        labels = torch.cat([one.targets[one.in_loss] for one in train])
        weights = len(labels) / (2 * torch.tensor([float((labels == 0).sum()), float((labels == 1).sum())]))
    batch, steps = BATCH[shape], STEPS[shape]
    dataset, trainer = dataset_and_trainer(
        folder,
        task=task,
        features={"numbers": [{"name": "load", "scale": "none"}], "categories": [], "elapsed": False}
        | {"hour_of_day": False},
        split={"by": "given", "field": "part"},
        model={"hidden": HIDDEN},
        training={"epochs": EPOCHS, "patience": EPOCHS, "batch": batch, "steps": steps, "seed": seed}
        | {"learning_rate": LEARNING_RATE, "clip": CLIP, "schedule": "none", "monitor": "none"}
        | ({"class_weights": class_weights} if task == "classify" else {}),
        **({"target": {"field": "label"}} if task == "classify" else {}),
    )
    assert int(dataset.loss_masks["train"].sum()) == sum(int(one.in_loss.sum()) for one in train)
    assert int(dataset.loss_masks["validation"].sum()) == sum(int(one.in_loss.sum()) for one in validation)
    network = PlainNetwork(1, HIDDEN, 2 if task == "anomaly" else 1)

    def take_weights() -> None:
        network.rnn.load_state_dict(trainer.network.layers[0].rnn.state_dict())
        network.head.load_state_dict(trainer.network.head.state_dict())

    take_weights()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    torch.manual_seed(seed)
    for _ in range(EPOCHS):
        loop_train = train_epoch(
            network, optimizer, train, task=task, weights=weights, batch=batch, steps=steps, clip=CLIP
        )
    loop_validation = mean_loss(network, validation, task=task, weights=weights)
    last = run(trainer).history[-1]
    take_weights()
    found = mean_loss(network, validation, task=task, weights=weights)
    assert last["validation_loss"] == pytest.approx(found, rel=1e-4, abs=1e-5)
    return np.array([[last["train_loss"], loop_train], [last["validation_loss"], loop_validation]])


@pytest.mark.parametrize(("task", "shape", "class_weights"), CASES)
def test_the_losses_are_not_above_those_of_a_plain_loop(
    tmp_path: Path, task: str, shape: str, class_weights: str
) -> None:
    for losses in compare(tmp_path, task, shape, class_weights):
        bound = max(MAX_STANDARD_ERRORS * losses.standard_error, MAX_FRACTION * losses.loop.mean())
        assert losses.difference <= bound, losses


def main(seeds: int) -> None:
    """Prints the losses as a Markdown table: means and standard errors."""
    print("| task | keys | class weights | split | trainer | loop | difference |")
    print("|" + " --- |" * 7)
    for task, shape, class_weights in CASES:
        with tempfile.TemporaryDirectory() as folder:
            both = compare(Path(folder), task, shape, class_weights, seeds)
        for split, losses in zip(("training", "validation"), both, strict=True):
            means = (f"{one.mean():.4f} ± {one.std(ddof=1) / seeds**0.5:.4f}" for one in (losses.trainer, losses.loop))
            difference = f"{losses.difference:+.4f} ± {losses.standard_error:.4f}"
            print("|", " | ".join([task, shape, class_weights, split, *means, difference]), "|", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS)
