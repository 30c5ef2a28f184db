"""The trainer against a plain PyTorch loop over packed sequences, which shares no code with it: same loss per epoch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstmstream.records import Bools
from lstmstream.train import features
from lstmstream.train import trainer as trainer_module
from lstmstream.train.batching import tbptt_batches
from lstmstream.train.dataset import Dataset
from lstmstream.train.trainer import Trainer
from tests.train.test_trainer import dataset_and_trainer, run

pytestmark = pytest.mark.torch

STEPS = 16
EPOCHS = 3


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """No random groups, no random cuts."""

    def unshuffled(*args: Any, rng: object, **options: Any) -> Any:
        return tbptt_batches(*args, **options)

    monkeypatch.setattr(trainer_module, "tbptt_batches", unshuffled)


def write_history(folder: Path, lengths: list[int]) -> None:
    """Keys of these lengths; the label is whether the sum of the last three loads is high: a state is of use."""
    random = np.random.default_rng(0)
    frames = []
    for key, length in enumerate(lengths):
        load = random.normal(size=length)
        past = np.convolve(load, np.ones(3))[:length]
        frames.append(
            pl.DataFrame(
                {
                    "customer": [f"c{key}"] * length,
                    "time": 1_600_000_000 + np.arange(length) * 60 + key,
                    "load": load,
                    "label": (past > 2).astype(int),
                }
            )
        )
    pl.concat(frames).sort("time").write_csv(folder / "history.csv")


def made(folder: Path, *, batch: int, task: str, **sections: Any) -> tuple[Dataset, Trainer]:
    target = {"target": {"field": "label", **sections.pop("target", {})}} if task == "classify" else {}
    return dataset_and_trainer(
        folder,
        task=task,
        features={"numbers": ["load"], "categories": [], "elapsed": False, "hour_of_day": False},
        training={"epochs": EPOCHS, "batch": batch, "steps": STEPS, "schedule": "none", **sections.pop("training", {})},
        **target,
        **sections,
    )


class Reference:
    """One LSTM layer and a linear head, trained as a tutorial would: packed sequences, states carried on."""

    def __init__(self, dataset: Dataset, trainer: Trainer, weights: list[float]) -> None:
        self.rnn = copy.deepcopy(trainer.network.layers[0].rnn)
        self.head = copy.deepcopy(trainer.network.head)
        self.weights = torch.tensor(weights)
        self.optimizer = torch.optim.Adam([*self.rnn.parameters(), *self.head.parameters()], 0.01)
        self.clip = trainer.options.clip
        events = dataset.events
        dense = features.transform(dataset.encoder, events.x[:], events.elapsed[:], np.asarray(events.timestamp[:]))
        self.sequences = []  # of each key: inputs [T, D], labels [T], whether an event is in the loss [T]
        mask: Bools = dataset.loss_masks["train"]
        for low, high in zip(events.starts[:-1], events.starts[1:], strict=True):
            end = low + int(np.flatnonzero(mask[low:high]).max(initial=-1)) + 1
            if end > low:
                part = slice(low, end)
                self.sequences.append(
                    (torch.from_numpy(dense[part]), torch.tensor(events.label[part]), torch.tensor(mask[part]))
                )

    def epoch(self, groups: list[list[int]]) -> float:
        """Each group of keys, 16 events at a time; the mean loss over all events."""
        total_weight = sum(float(self.weights[label[used]].sum()) for _, label, used in self.sequences)
        rounds = [max(-(-len(self.sequences[key][0]) // STEPS) for key in group) for group in groups]
        unit = total_weight / sum(rounds)
        loss_sum = 0.0
        for group, count in zip(groups, rounds, strict=True):
            state = {key: (torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)) for key in group}
            for begin in range(0, count * STEPS, STEPS):
                keys = [key for key in group if len(self.sequences[key][0]) > begin]
                inputs, labels, used = (
                    [self.sequences[key][part][begin : begin + STEPS] for key in keys] for part in range(3)
                )
                packed = pack_padded_sequence(
                    nn.utils.rnn.pad_sequence(inputs, batch_first=True),
                    torch.tensor([len(one) for one in inputs]),
                    batch_first=True,
                    enforce_sorted=False,
                )
                h, c = (torch.cat([state[key][part] for key in keys], 1) for part in range(2))
                output, (h, c) = self.rnn(packed, (h, c))
                logits = self.head(pad_packed_sequence(output, batch_first=True)[0])[..., 0]
                logit = torch.cat([row[: len(one)][mask] for row, one, mask in zip(logits, inputs, used, strict=True)])
                label = torch.cat([one[mask] for one, mask in zip(labels, used, strict=True)])
                weight = self.weights[label]
                each = nn.functional.binary_cross_entropy_with_logits(logit, label.float(), reduction="none")
                loss = (each * weight).sum()
                self.optimizer.zero_grad()
                (loss / unit).backward()
                share = float(weight.sum()) / unit
                nn.utils.clip_grad_norm_([*self.rnn.parameters(), *self.head.parameters()], self.clip * share)
                self.optimizer.step()
                loss_sum += loss.item()
                for at, key in enumerate(keys):
                    state[key] = (h[:, at : at + 1].detach(), c[:, at : at + 1].detach())
        return loss_sum / total_weight


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 6.0]], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        pytest.param([60] * 6, [[0, 1, 2, 3, 4, 5]], id="equal"),
        pytest.param([90, 77, 64, 58, 53, 50], [[0, 1, 2, 3, 4, 5]], id="uneven"),
        pytest.param([400, 350, 30, 20, 10, 5], [[0, 1], [2, 3, 4, 5]], id="few long, some short"),
        pytest.param([45, 44, 40, 30, 20, 3], [[0, 1, 2], [3, 4, 5]], id="two batches of keys"),
    ],
)
def test_the_loss_of_each_epoch_is_that_of_a_plain_loop(
    tmp_path: Path, lengths: list[int], groups: list[list[int]], weights: list[float]
) -> None:
    write_history(tmp_path, lengths)
    batch = max(map(len, groups))
    dataset, trainer = made(
        tmp_path,
        batch=batch,
        task="classify",
        split={"by": "time", "validation": 0.1, "test": 0.1},
        training={"class_weights": weights, "monitor": "loss"},
    )
    reference = Reference(dataset, trainer, weights)
    assert [len(one[0]) for one in reference.sequences] == sorted(len(one[0]) for one in reference.sequences)[::-1]
    expected = [reference.epoch(groups) for _ in range(EPOCHS)]
    found = [epoch["train_loss"] for epoch in run(trainer).history]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
