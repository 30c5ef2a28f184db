"""The trainer against a plain loop over packed sequences, on twelve small data sets and five seeds.

Both start from the same weights and have the same optimizer, but each its own order of keys and cuts: after the same
number of epochs their validation losses agree within the spread of the seeds. As a table:

    python -m tests.train.test_packed_loop
"""

from __future__ import annotations

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
    "many short": [10] * 300,
    "uneven": [600] * 2 + [50] * 20 + [8] * 100,
}
BATCH = {"few long": 3, "many short": 16, "uneven": 16}
CASES = [
    *((task, shape, "none") for task in ("classify", "forecast", "anomaly") for shape in LENGTHS),
    *(("classify", shape, "balanced") for shape in LENGTHS),
]
SEEDS = range(5)
EPOCHS, STEPS, HIDDEN, LEARNING_RATE, CLIP = 5, 16, 8, 0.01, 1.0
TRAINED = 0.7  # of each key's events; the rest is for validation


@dataclass(frozen=True)
class Losses:
    """Validation losses after the last epoch [seeds]."""

    trainer: np.ndarray
    loop: np.ndarray

    @property
    def spread(self) -> float:
        """The range of a loss over the seeds, the larger of the two."""
        return float(max(np.ptp(self.trainer), np.ptp(self.loop)))

    @property
    def difference(self) -> float:
        """How much higher the trainer's loss is in the mean."""
        return float(self.trainer.mean() - self.loop.mean())


def series(shape: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each key: numbers with a memory of two events and uneven noise, and labels by the sum of the last three."""
    random = np.random.default_rng(7)
    found = []
    for length in LENGTHS[shape]:
        load = np.zeros(length + 2)
        for at in range(2, length + 2):
            scale = 1.0 if load[at - 1] > 0 else 0.4
            load[at] = 0.8 * load[at - 1] - 0.5 * load[at - 2] + scale * random.normal()
        load = load[2:].astype(np.float32)
        past = np.convolve(load, np.ones(3))[:length]
        found.append((load, random.random(length) < 1 / (1 + np.exp(-3 * (past - 1.5)))))
    return found


def write_history(file: Path, shape: str) -> None:
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
        for key, (load, label) in enumerate(series(shape))
    ]
    pl.concat(frames).sort("time").write_csv(file)


def sequences(shape: str, task: str) -> tuple[list[Sequence], list[Sequence]]:
    """The training and the validation sequences, from the series themselves."""
    whole, masks = [], ([], [])
    for load, label in series(shape):
        trained = np.arange(len(load)) < TRAINED * len(load)
        if task == "classify":
            targets, parts, usable = label, trained, np.ones(len(load), np.bool_)
        else:  # a forecast belongs where its target is
            targets, parts, usable = np.roll(load, -1), np.roll(trained, -1), np.arange(len(load)) < len(load) - 1
        whole.append(Sequence(torch.tensor(load)[:, None], torch.tensor(targets).float(), torch.tensor(usable)))
        masks[0].append(torch.tensor(parts & usable))
        masks[1].append(torch.tensor(~parts & usable))
    return sequences_of_split(whole, masks[0]), sequences_of_split(whole, masks[1])


def compare(folder: Path, task: str, shape: str, class_weights: str) -> Losses:
    """Trains with the trainer and with the loop, from the same weights, with each seed."""
    file = folder / "history.csv"
    write_history(file, shape)
    train, validation = sequences(shape, task)
    weights = torch.ones(2)
    if class_weights == "balanced":
        labels = torch.cat([one.targets[one.in_loss] for one in train])
        weights = len(labels) / (2 * torch.tensor([float((labels == 0).sum()), float((labels == 1).sum())]))
    losses = []
    for seed in SEEDS:
        dataset, trainer = dataset_and_trainer(
            folder,
            task=task,
            features={"numbers": [{"name": "load", "scale": "none"}], "categories": [], "elapsed": False}
            | {"hour_of_day": False},
            split={"by": "given", "field": "part"},
            model={"hidden": HIDDEN},
            training={"epochs": EPOCHS, "patience": EPOCHS, "batch": BATCH[shape], "steps": STEPS, "seed": seed}
            | {"learning_rate": LEARNING_RATE, "clip": CLIP, "schedule": "none", "monitor": "none"}
            | ({"class_weights": class_weights} if task == "classify" else {}),
            **({"target": {"field": "label"}} if task == "classify" else {}),
        )
        assert int(dataset.loss_masks["train"].sum()) == sum(int(one.in_loss.sum()) for one in train)
        assert int(dataset.loss_masks["validation"].sum()) == sum(int(one.in_loss.sum()) for one in validation)
        network = PlainNetwork(1, HIDDEN, 2 if task == "anomaly" else 1)

        def take_weights(network: PlainNetwork = network, source: torch.nn.Module = trainer.network) -> None:
            network.rnn.load_state_dict(source.layers[0].rnn.state_dict())
            network.head.load_state_dict(source.head.state_dict())

        take_weights()
        optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        torch.manual_seed(seed)
        for _ in range(EPOCHS):
            train_epoch(
                network, optimizer, train, task=task, weights=weights, batch=BATCH[shape], steps=STEPS, clip=CLIP
            )
        loop = mean_loss(network, validation, task=task, weights=weights)
        history = run(trainer).history
        take_weights()
        found = mean_loss(network, validation, task=task, weights=weights)
        assert history[-1]["validation_loss"] == pytest.approx(found, rel=1e-4, abs=1e-5)
        losses.append((found, loop))
    return Losses(*np.array(losses).T)


@pytest.mark.parametrize(("task", "shape", "class_weights"), CASES)
def test_the_validation_loss_is_that_of_a_plain_loop(tmp_path: Path, task: str, shape: str, class_weights: str) -> None:
    losses = compare(tmp_path, task, shape, class_weights)
    assert abs(losses.difference) <= losses.spread, losses


def main() -> None:
    """Prints the losses as a Markdown table."""
    print("| task | keys | class weights | trainer | loop | difference | spread |")
    print("|" + " --- |" * 7)
    for task, shape, class_weights in CASES:
        with tempfile.TemporaryDirectory() as folder:
            losses = compare(Path(folder), task, shape, class_weights)
        sides = (f"{one.mean():.4f} ({one.min():.4f} to {one.max():.4f})" for one in (losses.trainer, losses.loop))
        print(
            "|",
            " | ".join([task, shape, class_weights, *sides, f"{losses.difference:+.4f}", f"{losses.spread:.4f}"]),
            "|",
            flush=True,
        )


if __name__ == "__main__":
    main()
