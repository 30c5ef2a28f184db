"""The training loop: states carried from batch to batch, the best epoch kept, and resuming after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lstmstream.errors import CannotServe, Fatal
from lstmstream.history.split import TEST
from lstmstream.train import features
from lstmstream.train.dataset import Dataset, prepare_dataset
from lstmstream.train.export.named_cells import NAMED_CELLS
from lstmstream.train.factory import make_network, make_trainer
from lstmstream.train.predict import forward_sequences
from lstmstream.train.trainer import EpochMetrics, Progress, Trainer, TrainingResult
from tests.train.histories import config_for, purchases

pytestmark = pytest.mark.torch

TASKS = ["classify", "forecast", "anomaly"]


def dataset_and_trainer(folder: Path, checkpoint: Path | None = None, **sections: Any) -> tuple[Dataset, Trainer]:
    dataset = prepare_dataset(config_for(folder, **sections))
    return dataset, make_trainer(make_network(dataset), dataset, checkpoint)


def run(trainer: Trainer, *, stop_after: int | None = None) -> TrainingResult:
    return trainer.run(lambda _: None, lambda _: None, lambda: len(trainer.result.history) == stop_after)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cell", ["lstm", "gru", *NAMED_CELLS])
def test_batches_give_what_whole_sequences_give(tmp_path: Path, task: str, cell: str) -> None:
    dataset, trainer = dataset_and_trainer(
        tmp_path, task=task, model={"hidden": 8, "layers": 2, "cell": cell}, training={"steps": 3, "batch": 5}
    )
    events = dataset.events
    found: dict[int, np.ndarray] = {}
    for rows, output in trainer.forward_events(np.ones(len(events), np.bool_)):
        found.update(zip(rows.tolist(), output.numpy(), strict=True))
    assert sorted(found) == list(range(len(events)))
    trainer.network.eval()
    for key in range(len(events.keys)):
        rows = np.arange(events.starts[key], events.starts[key + 1])
        dense = features.transform(dataset.encoder, events.x[rows], events.elapsed[rows], events.timestamp[rows])
        with torch.no_grad():
            inputs = torch.from_numpy(dense)[None], torch.from_numpy(events.codes[rows])[None]
            whole = forward_sequences(trainer.network, *inputs)
        np.testing.assert_allclose(np.stack([found[row] for row in rows.tolist()]), whole[0].numpy(), atol=2e-6)


def test_a_window_sees_only_its_events(tmp_path: Path) -> None:
    dataset, trainer = dataset_and_trainer(tmp_path, model={"hidden": 8, "window": 3})
    events = dataset.events

    def outputs() -> dict[int, np.ndarray]:
        batches = trainer.forward_events(np.ones(len(events), np.bool_))
        return {
            row: value.numpy().copy() for rows, out in batches for row, value in zip(rows.tolist(), out, strict=True)
        }

    before = outputs()
    key = int(np.argmax(events.lengths))
    first = int(events.starts[key])
    events.x[first, 0] += 5
    after = outputs()
    changed = sorted(row for row in before if not np.array_equal(before[row], after[row]))
    assert changed == [first, first + 1, first + 2]


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "none"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_resumed_training_ends_as_one_without_interruption(tmp_path: Path, schedule: str, optimizer: str) -> None:
    options = {"epochs": 4, "schedule": schedule, "optimizer": optimizer, "noise": 0.1, "mask": 0.1}
    model = {"hidden": 8, "dropout": 0.2}
    _, whole = dataset_and_trainer(tmp_path, model=model, training=options)
    expected = run(whole)
    checkpoint = tmp_path / "model.checkpoint"
    _, first = dataset_and_trainer(tmp_path, checkpoint, model=model, training=options)
    run(first, stop_after=2)
    _, second = dataset_and_trainer(tmp_path, checkpoint, model=model, training=options)
    assert second.resume() == 2
    found = run(second)
    assert [epoch["train_loss"] for epoch in found.history] == [epoch["train_loss"] for epoch in expected.history]
    assert found.best_epoch == expected.best_epoch
    for name, value in expected.weights.items():
        assert torch.equal(value, found.weights[name]), name


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    _, trainer = dataset_and_trainer(tmp_path, tmp_path / "model.checkpoint")
    torch.save({"network": Evil()}, tmp_path / "model.checkpoint")
    with pytest.raises(CannotServe, match=r"--resume: .*model\.checkpoint cannot be read"):
        trainer.resume()
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.checkpoint"
    dataset, trainer = dataset_and_trainer(tmp_path, checkpoint)
    with pytest.raises(CannotServe, match=r"--resume: .*model\.checkpoint does not exist"):
        trainer.resume()
    run(trainer, stop_after=1)
    _, other = dataset_and_trainer(tmp_path, checkpoint, training={"learning_rate": 0.02})
    with pytest.raises(CannotServe, match="other data or settings"):
        other.resume()
    first, *others = dataset.encoder.numbers
    encoder = replace(dataset.encoder, numbers=(replace(first, scale=2.5), *others))
    scaled = replace(dataset, encoder=encoder)
    resplit = replace(dataset, split=replace(dataset.split, labels=dataset.split.labels[::-1].copy()))
    for one in (scaled, resplit):
        with pytest.raises(CannotServe, match="other data or settings"):
            make_trainer(make_network(one), one, checkpoint).resume()
    whole = checkpoint.read_bytes()
    for content in (b"no checkpoint", b"", whole[: len(whole) // 2]):
        checkpoint.write_bytes(content)
        with pytest.raises(CannotServe, match=r"cannot be read: it is damaged, or not a checkpoint \(.+\); start"):
            trainer.resume()
    checkpoint.write_bytes(whole)
    saved = torch.load(checkpoint, weights_only=True)
    for name in ("augment_generator", "optimizer", "result"):
        torch.save({key: value for key, value in saved.items() if key != name}, checkpoint)
        with pytest.raises(CannotServe, match="was written by another version of lstmstream"):
            trainer.resume()
    torch.save([saved], checkpoint)
    with pytest.raises(CannotServe, match="other data or settings"):
        trainer.resume()


def test_the_best_epoch_is_kept_and_patience_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = dataset_and_trainer(tmp_path, training={"epochs": 50, "patience": 3})
    metrics = iter([0.3, 0.5, 0.4, 0.45, 0.5, 0.9])
    monkeypatch.setattr(trainer, "_validate", lambda: (1.0, next(metrics)))
    kept = []
    result = trainer.run(
        lambda _: None, lambda _: kept.append(trainer.network.state_dict()["head.weight"].clone()), lambda: False
    )
    assert (result.best_epoch, len(result.history)) == (2, 5)
    assert result.stop_reason == "3 epochs without improvement on the validation split"
    assert torch.equal(trainer.network.state_dict()["head.weight"], kept[1])
    assert not torch.equal(kept[1], kept[4])


def test_without_a_monitor_the_last_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = dataset_and_trainer(tmp_path, training={"epochs": 4, "patience": 1, "monitor": "none"})
    metrics = iter([0.9, 0.5, 0.6, 0.4])
    monkeypatch.setattr(trainer, "_validate", lambda: (1.0, next(metrics)))
    result = run(trainer)
    assert (result.best_epoch, len(result.history), result.stop_reason) == (4, 4, "all epochs complete")


def test_a_stop_keeps_the_best_so_far(tmp_path: Path) -> None:
    _, trainer = dataset_and_trainer(tmp_path, training={"epochs": 50})
    progress: list[Progress] = []
    epochs: list[EpochMetrics] = []
    result = trainer.run(progress.append, epochs.append, lambda: len(epochs) == 2 and progress[-1].epoch == 3)
    assert len(result.history) == 2
    assert result.stop_reason == "stopped by the user"
    assert 0 < progress[0].fraction < progress[1].fraction <= 1
    _, trainer = dataset_and_trainer(tmp_path)
    with pytest.raises(CannotServe, match="stopped before the first epoch was complete"):
        trainer.run(lambda _: None, lambda _: None, lambda: True)


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    _, trainer = dataset_and_trainer(tmp_path, training={"learning_rate": 1e38, "optimizer": "sgd", "clip": 1e30})
    with pytest.raises(CannotServe, match=r"loss is not finite; use a smaller training\.learning_rate"):
        run(trainer)


def test_the_gradient_is_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = dataset_and_trainer(tmp_path, training={"clip": 1e-3, "epochs": 1, "schedule": "none"})
    norms = []
    step = trainer.optimizer.step
    parameters = list(trainer.network.parameters())

    def look() -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))
        step()

    monkeypatch.setattr(trainer.optimizer, "step", look)
    run(trainer)
    # each update has the share of the bound that it has of the epoch
    assert sum(norms) == pytest.approx(1e-3 * trainer.updates_per_epoch, rel=0.01)


@pytest.mark.parametrize("weights", ["none", [1, 5]])
def test_a_classifier_starts_with_the_class_frequencies(tmp_path: Path, weights: Any) -> None:
    dataset, trainer = dataset_and_trainer(tmp_path, training={"class_weights": weights})
    labels = np.asarray(dataset.events.label)[dataset.loss_masks["train"]]
    odds = (labels == 1).sum() / (labels == 0).sum() * (1 if weights == "none" else 5)
    assert float(trainer.network.head.bias.detach()[0]) == pytest.approx(np.log(odds), abs=1e-5)


@pytest.mark.parametrize("what", [{"noise": 1.0}, {"mask": 0.5}])
def test_augmentation_is_for_training_only(tmp_path: Path, what: dict[str, float]) -> None:
    """Both trainings have a mask or none, so that their encoders are the same: with a mask it has missing flags."""
    few = {"mask": 1e-9} if "mask" in what else {}
    _, plain = dataset_and_trainer(tmp_path, training={"epochs": 1, **few})
    _, hidden = dataset_and_trainer(tmp_path, training={"epochs": 1, **what})
    assert plain._validate() == hidden._validate()
    assert run(plain).history[0]["train_loss"] != pytest.approx(run(hidden).history[0]["train_loss"], rel=1e-3)


def test_validation_is_without_dropout(tmp_path: Path) -> None:
    _, trainer = dataset_and_trainer(tmp_path, model={"layers": 2, "dropout": 0.5})
    trainer.network.train()
    assert trainer._validate() == trainer._validate()


def test_class_weights_do_not_change_the_size_of_an_update(tmp_path: Path) -> None:
    nets = []
    for weight in (1, 100):
        training = {"optimizer": "sgd", "clip": 1e9, "epochs": 1, "class_weights": [weight, weight]}
        _, trainer = dataset_and_trainer(tmp_path, training=training)
        run(trainer)
        nets.append(trainer.network.state_dict())
    for name, values in nets[0].items():
        torch.testing.assert_close(nets[1][name], values, atol=1e-5, rtol=1e-4, msg=name)


def test_average_precision_without_positives_is_refused(tmp_path: Path) -> None:
    dataset, _ = dataset_and_trainer(tmp_path, training={"monitor": "average_precision"})
    validation = dataset.loss_masks["validation"]
    validation &= np.asarray(dataset.events.label) == 0
    with pytest.raises(CannotServe, match=r"training\.monitor: average_precision cannot be computed, because 0 of the"):
        make_trainer(make_network(dataset), dataset, None)


def test_few_positives_leave_the_choice_to_the_loss(tmp_path: Path) -> None:
    purchases(tmp_path / "history.csv", keys=250)
    dataset, trainer = dataset_and_trainer(tmp_path)
    validation = dataset.loss_masks["validation"]
    positives = np.flatnonzero(validation & (np.asarray(dataset.events.label) == 1))
    assert trainer.result.monitor == "average_precision"
    for left, monitor in ((50, "average_precision"), (49, "loss")):
        validation[positives[left:]] = False
        assert make_trainer(make_network(dataset), dataset, None).result.monitor == monitor


def test_the_learning_rate_follows_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {}
    for schedule in ("none", "cosine", "plateau"):
        _, trainer = dataset_and_trainer(
            tmp_path, training={"epochs": 5, "patience": 5, "learning_rate": 0.1, "schedule": schedule}
        )
        monkeypatch.setattr(trainer, "_validate", lambda: (1.0, 0.0))  # no improvement
        rates[schedule] = [epoch["learning_rate"] for epoch in run(trainer).history]
    assert rates["none"] == [0.1] * 5
    cosine = [0.001 + 0.099 * (1 + np.cos(np.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert rates["cosine"] == pytest.approx(cosine)
    assert rates["plateau"] == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])


def test_the_network_learns_from_the_previous_event(tmp_path: Path) -> None:
    """The label depends on the event before, which only a memory knows."""
    options = {"epochs": 30, "patience": 30, "learning_rate": 0.02, "monitor": "average_precision"}
    _, trainer = dataset_and_trainer(tmp_path, training=options)
    result = run(trainer)
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]
    assert result.best_metric > 0.8


def test_events_before_the_training_split_only_warm_up_the_state(tmp_path: Path) -> None:
    """Their labels do not matter; their numbers do, through the state."""
    split = {"train_from": "2020-09-13T18:00:00Z", "validation_from": "2020-09-14T04:00:00Z", "test": 0}

    def weights(change: str | None) -> Any:
        dataset, trainer = dataset_and_trainer(tmp_path, split=split, training={"epochs": 1})
        early = np.flatnonzero(dataset.split.labels == 0)
        assert 0 < len(early) < len(dataset.events) / 2
        if change == "label":
            dataset.events.label[early] = 1 - dataset.events.label[early]
        elif change == "x":
            dataset.events.x[early, 0] *= 2
        return run(trainer).weights["head.weight"]

    unchanged = weights(None)
    assert torch.equal(unchanged, weights("label"))
    assert not torch.equal(unchanged, weights("x"))


def test_the_test_split_does_not_change_the_model(tmp_path: Path) -> None:
    def weights(change: bool) -> Any:
        config = config_for(tmp_path)
        dataset = prepare_dataset(config)
        if change:
            rows = dataset.split.rows(TEST)
            dataset.events.x[rows] = 1e6
            dataset.events.label[rows] = 1
        trainer = make_trainer(make_network(dataset), dataset, None)
        return run(trainer)

    one, other = weights(change=False), weights(change=True)
    assert one.history[0]["validation_loss"] == other.history[0]["validation_loss"]
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, as torch says it."""

    def full(_: object, file: Path) -> None:
        file.write_bytes(b"a part")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 1 vs 2\nmore")

    monkeypatch.setattr(torch, "save", full)
    trainer = dataset_and_trainer(tmp_path, tmp_path / "m.checkpoint")[1]
    with pytest.raises(Fatal, match=r"m\.checkpoint: the checkpoint cannot be written .* is the disk full\?"):
        run(trainer, stop_after=1)
    assert not list(tmp_path.glob(".*.part"))
