"""The loop: states carried from piece to piece, the best epoch kept, and a training that was cut off goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from histories import config_for

from lstmstream.errors import CannotServe
from lstmstream.train import network
from lstmstream.train.fit import Fit, Line, Told
from lstmstream.train.history import features
from lstmstream.train.history.split import TEST, TRAIN, VALIDATION, Parts
from lstmstream.train.objective import Objective, class_weights, counting, hide
from lstmstream.train.prepare import Prepared, prepare
from lstmstream.train.run import make_fit, make_net

pytestmark = pytest.mark.torch

TASKS = ["classify", "forecast", "anomaly"]


def ready(folder: Path, checkpoint: Path | None = None, **sections: Any) -> tuple[Prepared, Fit]:
    prepared = prepare(config_for(folder, **sections))
    return prepared, make_fit(make_net(prepared), prepared, checkpoint)


def run(fit: Fit, *, stop_after: int | None = None) -> Any:
    return fit.run(lambda _: None, lambda _: None, lambda: len(fit.fitted.history) == stop_after)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_pieces_give_what_whole_sequences_give(tmp_path: Path, task: str, cell: str) -> None:
    prepared, fit = ready(
        tmp_path, task=task, model={"hidden": 8, "layers": 2, "cell": cell}, training={"steps": 3, "batch": 5}
    )
    events, found = prepared.events, {}
    for rows, output, _ in fit.outputs(np.ones(len(events), np.bool_)):
        found.update(zip(rows.tolist(), output.numpy(), strict=True))
    assert sorted(found) == list(range(len(events)))
    fit.net.eval()
    for key in range(len(events.keys)):
        rows = np.arange(events.starts[key], events.starts[key + 1])
        dense = features.encode(prepared.encoder, events.x[rows], events.elapsed[rows], events.timestamp[rows])
        with torch.no_grad():
            whole = network.outputs(fit.net, torch.from_numpy(dense)[None], torch.from_numpy(events.codes[rows])[None])
        np.testing.assert_allclose(np.stack([found[row] for row in rows.tolist()]), whole[0].numpy(), atol=2e-6)


def test_a_window_sees_only_its_events(tmp_path: Path) -> None:
    prepared, fit = ready(tmp_path, model={"hidden": 8, "window": 3})
    events = prepared.events
    everything = np.ones(len(events), np.bool_)
    before = {
        int(r): o.numpy().copy() for rows, out, _ in fit.outputs(everything) for r, o in zip(rows, out, strict=True)
    }
    key = int(np.argmax(events.lengths))
    first = int(events.starts[key])
    events.x[first, 0] += 5
    after = {int(r): o.numpy() for rows, out, _ in fit.outputs(everything) for r, o in zip(rows, out, strict=True)}
    changed = sorted(row for row in before if not np.array_equal(before[row], after[row]))
    assert changed == [first, first + 1, first + 2]


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "none"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_training_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path, schedule: str, optimizer: str) -> None:
    options = {"epochs": 4, "schedule": schedule, "optimizer": optimizer, "noise": 0.1, "mask": 0.1}
    model = {"hidden": 8, "dropout": 0.2}
    _, whole = ready(tmp_path, model=model, training=options)
    expected = run(whole)
    checkpoint = tmp_path / "model.checkpoint"
    _, first = ready(tmp_path, checkpoint, model=model, training=options)
    run(first, stop_after=2)
    _, second = ready(tmp_path, checkpoint, model=model, training=options)
    assert second.resume() == 2
    found = run(second)
    assert [line["train_loss"] for line in found.history] == [line["train_loss"] for line in expected.history]
    assert found.best_epoch == expected.best_epoch
    for name, value in expected.weights.items():
        assert torch.equal(value, found.weights[name]), name


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.checkpoint"
    prepared, fit = ready(tmp_path, checkpoint)
    with pytest.raises(CannotServe, match=r"--resume: there is no .*model\.checkpoint"):
        fit.resume()
    run(fit, stop_after=1)
    _, other = ready(tmp_path, checkpoint, training={"learning_rate": 0.02})
    with pytest.raises(CannotServe, match="other data or settings"):
        other.resume()
    first, *others = prepared.encoder.numbers
    encoder = replace(prepared.encoder, numbers=(replace(first, scale=2.5), *others))
    scaled = replace(prepared, encoder=encoder)
    divided = replace(prepared, parts=replace(prepared.parts, of=prepared.parts.of[::-1].copy()))
    for one in (scaled, divided):
        with pytest.raises(CannotServe, match="other data or settings"):
            make_fit(make_net(one), one, checkpoint).resume()
    checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(CannotServe, match="cannot be read"):
        fit.resume()


def test_the_best_epoch_is_kept_and_patience_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fit = ready(tmp_path, training={"epochs": 50, "patience": 3})
    metrics = iter([0.3, 0.5, 0.4, 0.45, 0.5, 0.9])
    monkeypatch.setattr(fit, "_check", lambda: (1.0, next(metrics)))
    kept = []
    fitted = fit.run(lambda _: None, lambda _: kept.append(fit.net.state_dict()["head.weight"].clone()), lambda: False)
    assert (fitted.best_epoch, len(fitted.history)) == (2, 5)
    assert fitted.ended == "3 epochs without a better validation"
    assert torch.equal(fit.net.state_dict()["head.weight"], kept[1])
    assert not torch.equal(kept[1], kept[4])


def test_without_a_monitor_the_last_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fit = ready(tmp_path, training={"epochs": 4, "patience": 1, "monitor": "none"})
    metrics = iter([0.9, 0.5, 0.6, 0.4])
    monkeypatch.setattr(fit, "_check", lambda: (1.0, next(metrics)))
    fitted = run(fit)
    assert (fitted.best_epoch, len(fitted.history), fitted.ended) == (4, 4, "all epochs done")


def test_a_stop_keeps_the_best_so_far(tmp_path: Path) -> None:
    _, fit = ready(tmp_path, training={"epochs": 50})
    told: list[Told] = []
    lines: list[Line] = []
    fitted = fit.run(told.append, lines.append, lambda: len(lines) == 2 and told[-1].epoch == 3)
    assert len(fitted.history) == 2
    assert fitted.ended == "stopped by hand"
    assert 0 < told[0].done < told[1].done <= 1
    _, fit = ready(tmp_path)
    with pytest.raises(CannotServe, match="stopped before the first epoch was done"):
        fit.run(lambda _: None, lambda _: None, lambda: True)


def test_a_loss_that_is_no_number_is_said(tmp_path: Path) -> None:
    _, fit = ready(tmp_path, training={"learning_rate": 1e38, "optimizer": "sgd", "clip": 1e30})
    with pytest.raises(CannotServe, match=r"loss is not a number; take a smaller training\.learning_rate"):
        run(fit)


def test_the_gradient_is_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fit = ready(tmp_path, training={"clip": 1e-3, "epochs": 1, "schedule": "none"})
    norms = []
    step = fit.optimizer.step
    parameters = list(fit.net.parameters())

    def look() -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))
        step()

    monkeypatch.setattr(fit.optimizer, "step", look)
    run(fit)
    assert norms
    assert max(norms) <= 1.001e-3


@pytest.mark.parametrize("weights", ["none", [1, 5]])
def test_a_network_begins_with_how_frequent_the_classes_are(tmp_path: Path, weights: Any) -> None:
    prepared, fit = ready(tmp_path, training={"class_weights": weights})
    labels = np.asarray(prepared.events.label)[prepared.counted["train"]]
    odds = (labels == 1).sum() / (labels == 0).sum() * (1 if weights == "none" else 5)
    assert float(fit.net.head.bias.detach()[0]) == pytest.approx(np.log(odds), abs=1e-5)


@pytest.mark.parametrize("what", [{"noise": 1.0}, {"mask": 0.5}])
def test_what_is_hidden_is_hidden_while_learning_only(tmp_path: Path, what: dict[str, float]) -> None:
    """The encoder is the same: with `mask` it has flags, so both have a mask."""
    few = {"mask": 1e-9} if "mask" in what else {}
    _, plain = ready(tmp_path, training={"epochs": 1, **few})
    _, hidden = ready(tmp_path, training={"epochs": 1, **what})
    assert plain._check() == hidden._check()
    assert run(plain).history[0]["train_loss"] != pytest.approx(run(hidden).history[0]["train_loss"], rel=1e-3)


def test_looking_drops_nothing_out(tmp_path: Path) -> None:
    _, fit = ready(tmp_path, model={"layers": 2, "dropout": 0.5})
    fit.net.train()
    assert fit._check() == fit._check()


def test_the_weights_of_classes_do_not_change_the_size_of_a_step(tmp_path: Path) -> None:
    nets = []
    for weight in (1, 100):
        training = {"optimizer": "sgd", "clip": 1e9, "epochs": 1, "class_weights": [weight, weight]}
        _, fit = ready(tmp_path, training=training)
        run(fit)
        nets.append(fit.net.state_dict())
    for name, values in nets[0].items():
        torch.testing.assert_close(nets[1][name], values, atol=1e-5, rtol=1e-4, msg=name)


def test_average_precision_without_positives_is_refused(tmp_path: Path) -> None:
    prepared, _ = ready(tmp_path, training={"monitor": "average_precision"})
    checked = prepared.counted["validation"]
    checked &= np.asarray(prepared.events.label) == 0
    with pytest.raises(CannotServe, match=r"training\.monitor: average_precision cannot choose, as 0 of the"):
        make_fit(make_net(prepared), prepared, None)


def test_few_positives_leave_the_choice_to_the_loss(tmp_path: Path) -> None:
    prepared, fit = ready(tmp_path)
    checked = prepared.counted["validation"]
    positives = np.flatnonzero(checked & (np.asarray(prepared.events.label) == 1))
    assert fit.fitted.monitor == "average_precision"
    for left, monitor in ((10, "average_precision"), (9, "loss")):
        checked[positives[left:]] = False
        assert make_fit(make_net(prepared), prepared, None).fitted.monitor == monitor


def test_the_learning_rate_follows_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {}
    for schedule in ("none", "cosine", "plateau"):
        _, fit = ready(tmp_path, training={"epochs": 5, "patience": 5, "learning_rate": 0.1, "schedule": schedule})
        monkeypatch.setattr(fit, "_check", lambda: (1.0, 0.0))  # stalls
        rates[schedule] = [line["learning_rate"] for line in run(fit).history]
    assert rates["none"] == [0.1] * 5
    cosine = [0.001 + 0.099 * (1 + np.cos(np.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert rates["cosine"] == pytest.approx(cosine)
    assert rates["plateau"] == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])


def test_learning_helps(tmp_path: Path) -> None:
    """The label depends on the event before, which only a memory knows."""
    _, fit = ready(tmp_path, training={"epochs": 30, "patience": 30, "learning_rate": 0.02})
    fitted = run(fit)
    assert fitted.monitor == "average_precision"
    assert fitted.history[-1]["train_loss"] < 0.5 * fitted.history[0]["train_loss"]
    assert fitted.best > 0.8


def test_events_before_the_training_part_only_warm_the_state(tmp_path: Path) -> None:
    """Their labels do not matter; their numbers do, through the state."""
    split = {"train_from": "2020-09-13T18:00:00Z", "validation_from": "2020-09-14T04:00:00Z", "test": 0}

    def weights(change: str | None) -> Any:
        prepared, fit = ready(tmp_path, split=split, training={"epochs": 1})
        early = np.flatnonzero(prepared.parts.of == 0)
        assert 0 < len(early) < len(prepared.events) / 2
        if change == "label":
            prepared.events.label[early] = 1 - prepared.events.label[early]
        elif change == "x":
            prepared.events.x[early, 0] *= 2
        return run(fit).weights["head.weight"]

    unchanged = weights(None)
    assert torch.equal(unchanged, weights("label"))
    assert not torch.equal(unchanged, weights("x"))


# --- what is learned -----------------------------------------------------------------------------------------------


def test_a_forecast_belongs_to_the_part_where_it_comes_true(tmp_path: Path) -> None:
    prepared, _ = ready(tmp_path, task="forecast", target={"fields": ["amount"], "horizon": 2})
    events, parts = prepared.events, prepared.parts
    for part in (TRAIN, VALIDATION, TEST):
        counted = counting(events, parts, prepared.config, part)
        for key in range(len(events.keys)):
            rows = list(range(events.starts[key], events.starts[key + 1]))
            for row in rows:
                expected = row + 2 in rows and parts.of[row + 1] == part and parts.of[row + 2] == part
                assert counted[row] == expected


def test_a_forecast_crosses_no_other_part(tmp_path: Path) -> None:
    """Parts may be mixed within a key where the data say which is which."""
    prepared, _ = ready(tmp_path, task="forecast", target={"horizon": 3})
    events = prepared.events
    key = int(np.argmax(events.lengths))
    begin, end = (int(row) for row in events.starts[key : key + 2])
    of = np.full(len(events), TRAIN, np.int8)
    of[begin + 6] = TEST
    counted = counting(events, Parts(of, ""), prepared.config, TRAIN)
    expected = np.array([row + 3 < end and not row < begin + 6 <= row + 3 for row in range(begin, end)])
    assert counted[begin:end].tolist() == expected.tolist()


def test_an_event_far_off_still_teaches(tmp_path: Path) -> None:
    prepared, _ = ready(tmp_path, task="anomaly")
    objective = Objective(prepared.config, prepared.encoder, np.empty(0, np.float32))
    output = torch.zeros(1, 1, 4, requires_grad=True)
    wanted = torch.full((1, 1, 2), 1e4)
    objective.error(output, wanted, torch.ones(1, 1, 2, dtype=torch.bool))[0].backward()
    assert output.grad is not None
    means, log_scales = output.grad[0, 0].chunk(2)
    assert (means < -50).all(), "towards the event"
    assert (log_scales < 0).all(), "a wider scale"


def test_what_a_forecast_should_say(tmp_path: Path) -> None:
    prepared, fit = ready(tmp_path, task="forecast", target={"horizon": 2})
    events = prepared.events
    piece = next(iter(fit._pass(np.asarray(prepared.counted["train"]), None)))[0]
    wanted, known = fit.objective.wanted(events, piece)
    assert wanted.shape == (*piece.rows.shape, 4)
    for b, t in np.argwhere(piece.counted).tolist():
        row = piece.rows[b, t]
        for ahead in (1, 2):
            dense = features.encode(
                prepared.encoder,
                events.x[[row + ahead]],
                events.elapsed[[row + ahead]],
                events.timestamp[[row + ahead]],
            )
            for column in (0, 1):
                missing = np.isnan(events.x[row + ahead, column])
                assert bool(known[b, t, 2 * (ahead - 1) + column]) is not bool(missing)
                if not missing:
                    assert wanted[b, t, 2 * (ahead - 1) + column] == pytest.approx(float(dense[0, column]))


def test_errors_by_hand(tmp_path: Path) -> None:
    output, wanted = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[[0.0], [1.0], [0.0]]])
    known = torch.tensor([[[True], [True], [False]]])
    for loss, expected in (("mse", 1 + 4), ("mae", 1 + 2), ("huber", 0.5 + 1.5)):
        config = config_for(tmp_path, task="forecast", target={"fields": ["amount"], "loss": loss})
        total, weight = Objective(config, prepare(config).encoder, np.empty(0, np.float32)).error(output, wanted, known)
        assert (float(total), float(weight)) == (pytest.approx(expected), 2)
    anomaly = Objective(config_for(tmp_path, task="anomaly"), prepare(config).encoder, np.empty(0, np.float32))
    both = torch.tensor([[[1.0, 0.5], [3.0, -1.0], [9.0, 0.0]]])
    total, _ = anomaly.error(both, wanted, known)
    by_hand = 0.5 + 0.5 * (1 * np.exp(-0.5)) ** 2 - 1.0 + 0.5 * (2 * np.exp(1.0)) ** 2
    assert float(total) == pytest.approx(by_hand, rel=1e-5)


def test_errors_of_classes_by_hand(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    objective = Objective(config, prepare(config).encoder, np.array([1, 3], np.float32))
    logits, label = torch.tensor([[[0.3], [-1.0], [2.0]]]), torch.tensor([[[1], [0], [1]]])
    known = torch.tensor([[[True], [True], [False]]])
    total, weight = objective.error(logits, label, known)
    assert float(total) == pytest.approx(3 * np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-1.0)), rel=1e-6)
    assert float(weight) == 4
    three = torch.tensor([[[0.0, 1.0, 2.0]]])
    weighted = Objective(config, objective.encoder, np.array([1, 2, 5], np.float32))
    total, weight = weighted.error(three, torch.tensor([[[2]]]), torch.tensor([[[True]]]))
    assert float(total) == pytest.approx(-5 * (2 - np.log(1 + np.e + np.e**2)), rel=1e-6)
    assert float(weight) == 5


def test_class_weights() -> None:
    counts = np.array([90, 10])
    assert class_weights("none", counts).tolist() == [1, 1]
    assert class_weights("balanced", counts) == pytest.approx([100 / 180, 100 / 20])
    assert class_weights([1, 7], counts).tolist() == [1, 7]


def test_hidden_numbers_look_missing(tmp_path: Path) -> None:
    prepared = prepare(config_for(tmp_path, training={"mask": 0.5}))
    encoder = prepared.encoder
    assert all(number.flag_missing for number in encoder.numbers)
    dense = torch.ones(200, 50, encoder.dense_width)
    found = hide(dense, encoder, 0.25, 0.0, torch.Generator().manual_seed(0))
    flags = [column for column in features.flag_columns(encoder) if column is not None]
    assert len(flags) == 2
    share = (found[..., :2] == 0).float().mean()
    assert share == pytest.approx(0.25, abs=0.02)
    dense[..., flags] = 0
    found = hide(dense, encoder, 0.25, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(found[..., :2] == 0, found[..., flags] == 1)
    untouched = [column for column in range(encoder.dense_width) if column not in {0, 1, *flags}]
    assert torch.equal(found[..., untouched], dense[..., untouched])
    noisy = hide(dense, encoder, 0.0, 0.5, torch.Generator().manual_seed(0)) - dense
    assert noisy[..., :2].std() == pytest.approx(0.5, abs=0.02)
    assert not noisy[..., 2:].any()


def test_nothing_of_the_test_part_moves_the_model(tmp_path: Path) -> None:
    def weights(change: bool) -> Any:
        config = config_for(tmp_path)
        prepared, fit = prepare(config), None
        if change:
            rows = prepared.parts.rows(TEST)
            prepared.events.x[rows] = 1e6
            prepared.events.label[rows] = 1
        fit = make_fit(make_net(prepared), prepared, None)
        return run(fit)

    one, other = weights(change=False), weights(change=True)
    assert one.history[0]["validation_loss"] == other.history[0]["validation_loss"]
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name
