"""Which events are in a loss, what their targets are, and the loss of each task by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lstmstream.history.split import TEST, TRAIN, VALIDATION, Split
from lstmstream.train import features
from lstmstream.train.batching import tbptt_batches
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.loss import Objective, augment, class_weights, make_loss_mask
from tests.train.histories import config_for

pytestmark = pytest.mark.torch

NO_WEIGHTS = np.empty(0, np.float32)


def test_a_forecast_belongs_to_the_split_of_its_targets(tmp_path: Path) -> None:
    dataset = prepare_dataset(config_for(tmp_path, task="forecast", target={"fields": ["amount"], "horizon": 2}))
    events, labels = dataset.events, dataset.split.labels
    for label in (TRAIN, VALIDATION, TEST):
        mask = make_loss_mask(events, dataset.split, dataset.config, label)
        for key in range(len(events.keys)):
            rows = list(range(events.starts[key], events.starts[key + 1]))
            for row in rows:
                assert mask[row] == (row + 2 in rows and labels[row + 1] == label and labels[row + 2] == label)


def test_no_target_of_a_forecast_is_in_another_split(tmp_path: Path) -> None:
    """Within a key the splits may alternate, where a field of the data gives them."""
    dataset = prepare_dataset(config_for(tmp_path, task="forecast", target={"horizon": 3}))
    events = dataset.events
    key = int(np.argmax(events.lengths))
    begin, end = (int(row) for row in events.starts[key : key + 2])
    labels = np.full(len(events), TRAIN, np.int8)
    labels[begin + 6] = TEST
    mask = make_loss_mask(events, Split(labels, ""), dataset.config, TRAIN)
    expected = [row + 3 < end and not row < begin + 6 <= row + 3 for row in range(begin, end)]
    assert mask[begin:end].tolist() == expected


def test_an_outlier_still_has_a_gradient(tmp_path: Path) -> None:
    dataset = prepare_dataset(config_for(tmp_path, task="anomaly"))
    objective = Objective(dataset.config, dataset.encoder, NO_WEIGHTS)
    output = torch.zeros(1, 1, 4, requires_grad=True)
    targets = torch.full((1, 1, 2), 1e4)
    objective.loss(output, targets, torch.ones(1, 1, 2, dtype=torch.bool))[0].backward()
    assert output.grad is not None
    means, log_scales = output.grad[0, 0].chunk(2)
    assert (means < -50).all(), "towards the event"
    assert (log_scales < 0).all(), "a wider scale"


def test_the_targets_of_a_forecast_are_the_next_scaled_values(tmp_path: Path) -> None:
    dataset = prepare_dataset(config_for(tmp_path, task="forecast", target={"horizon": 2}))
    events = dataset.events
    batch = next(tbptt_batches(events.starts, dataset.loss_masks["train"], batch_size=16, steps=8))
    targets, known = Objective(dataset.config, dataset.encoder, NO_WEIGHTS).targets(events, batch)
    assert targets.shape == (*batch.rows.shape, 4)
    assert batch.loss_mask.any()
    for b, t in np.argwhere(batch.loss_mask).tolist():
        for ahead in (1, 2):
            row = [batch.rows[b, t] + ahead]
            dense = features.transform(dataset.encoder, events.x[row], events.elapsed[row], events.timestamp[row])
            for column in (0, 1):
                target = b, t, 2 * (ahead - 1) + column
                missing = bool(np.isnan(events.x[row[0], column]))
                assert bool(known[target]) is not missing
                if not missing:
                    assert targets[target] == pytest.approx(float(dense[0, column]))


def test_losses_of_forecasts_by_hand(tmp_path: Path) -> None:
    output, targets = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[[0.0], [1.0], [0.0]]])
    known = torch.tensor([[[True], [True], [False]]])
    encoder = prepare_dataset(config_for(tmp_path, task="forecast")).encoder
    for option, expected in (("mse", 1 + 4), ("mae", 1 + 2), ("huber", 0.5 + 1.5)):
        config = config_for(tmp_path, task="forecast", target={"fields": ["amount"], "loss": option})
        total, weight = Objective(config, encoder, NO_WEIGHTS).loss(output, targets, known)
        assert (float(total), float(weight)) == (pytest.approx(expected), 2)
    anomaly = Objective(config_for(tmp_path, task="anomaly"), encoder, NO_WEIGHTS)
    means_and_log_scales = torch.tensor([[[1.0, 0.5], [3.0, -1.0], [9.0, 0.0]]])
    total, _ = anomaly.loss(means_and_log_scales, targets, known)
    by_hand = 0.5 + 0.5 * (1 * np.exp(-0.5)) ** 2 - 1.0 + 0.5 * (2 * np.exp(1.0)) ** 2
    assert float(total) == pytest.approx(by_hand, rel=1e-5)


def test_losses_of_classes_by_hand(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    encoder = prepare_dataset(config).encoder
    logits, label = torch.tensor([[[0.3], [-1.0], [2.0]]]), torch.tensor([[[1], [0], [1]]])
    known = torch.tensor([[[True], [True], [False]]])
    total, weight = Objective(config, encoder, np.array([1, 3], np.float32)).loss(logits, label, known)
    assert float(total) == pytest.approx(3 * np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-1.0)), rel=1e-6)
    assert float(weight) == 4
    three = torch.tensor([[[0.0, 1.0, 2.0]]])
    weighted = Objective(config, encoder, np.array([1, 2, 5], np.float32))
    total, weight = weighted.loss(three, torch.tensor([[[2]]]), torch.tensor([[[True]]]))
    assert float(total) == pytest.approx(-5 * (2 - np.log(1 + np.e + np.e**2)), rel=1e-6)
    assert float(weight) == 5


def test_class_weights() -> None:
    counts = np.array([90, 10])
    assert class_weights("none", counts).tolist() == [1, 1]
    assert class_weights("balanced", counts) == pytest.approx([100 / 180, 100 / 20])
    assert class_weights([1, 7], counts).tolist() == [1, 7]


def test_masked_numbers_look_missing(tmp_path: Path) -> None:
    encoder = prepare_dataset(config_for(tmp_path, training={"mask": 0.5})).encoder
    assert all(number.flag_missing for number in encoder.numbers)
    dense = torch.ones(200, 50, encoder.dense_width)
    present = torch.zeros(200, 50, 2, dtype=torch.bool)
    masked = augment(dense, present, encoder, 0.25, 0.0, torch.Generator().manual_seed(0))
    flags = [column for column in features.missing_flag_columns(encoder) if column is not None]
    assert len(flags) == 2
    fraction = (masked[..., :2] == 0).float().mean()
    assert fraction == pytest.approx(0.25, abs=0.02)
    dense[..., flags] = 0
    masked = augment(dense, present, encoder, 0.25, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(masked[..., :2] == 0, masked[..., flags] == 1)
    untouched = [column for column in range(encoder.dense_width) if column not in {0, 1, *flags}]
    assert torch.equal(masked[..., untouched], dense[..., untouched])
    noise = augment(dense, present, encoder, 0.0, 0.5, torch.Generator().manual_seed(0)) - dense
    assert noise[..., :2].std() == pytest.approx(0.5, abs=0.02)
    assert not noise[..., 2:].any()


def test_a_missing_number_gets_no_noise(tmp_path: Path) -> None:
    """In serving a missing number is 0 exactly; a network trained with noise there would not know it."""
    encoder = prepare_dataset(config_for(tmp_path)).encoder
    dense = torch.zeros(200, 50, encoder.dense_width)
    absent = torch.rand(200, 50, 2, generator=torch.Generator().manual_seed(1)) < 0.5
    noisy = augment(dense, absent, encoder, 0.0, 0.5, torch.Generator().manual_seed(0))[..., :2]
    assert not noisy[absent].any()
    assert noisy[~absent].std() == pytest.approx(0.5, abs=0.02)
