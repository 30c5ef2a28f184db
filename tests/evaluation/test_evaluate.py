"""What counts as truth, and the command on files: its numbers are those of the daemon's answers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.cli import app
from lstmstream.errors import CannotServe
from lstmstream.evaluation.alignment import TaskSpec, align_with_truth, evaluated_rows
from lstmstream.evaluation.command import MAX_METRICS, evaluate
from lstmstream.evaluation.descriptions import format_number
from lstmstream.evaluation.training_data import training_record
from lstmstream.history.events import load_events_for_card
from lstmstream.model import load_model
from lstmstream.serve.score import score_file
from lstmstream.train.export import DenseHead, build
from tests.models import card_of, random_network, write
from tests.random_events import history

NAN = np.nan
TWO_KEYS = [[1, 10], [NAN, 20], [3, 30], [4, 40], [NAN, 5], [6, NAN]]  # 4 events, then 2


def two_keys(**more: Any) -> Any:
    return history(lengths=[4, 2], seed=0, values=TWO_KEYS, **more)


def test_the_truth_of_a_forecast_is_what_came_next() -> None:
    spec = TaskSpec("forecast", ("a", "b"), ("a", "b"), horizon=2)
    prediction = np.arange(24, dtype=np.float32).reshape(6, 4)
    evaluated = align_with_truth(spec, two_keys(), prediction[:, 0], prediction)
    assert evaluated.names == ("a t+1", "b t+1", "a t+2", "b t+2")
    np.testing.assert_array_equal(
        evaluated.truth, [[NAN, 20, 3, 30], [3, 30, 4, 40], [4, 40, NAN, NAN], [6, NAN, NAN, NAN]]
    )
    np.testing.assert_array_equal(evaluated.naive, [[1, 10, 1, 10], [1, 20, 1, 20], [3, 30, 3, 30], [NAN, 5, NAN, 5]])
    np.testing.assert_array_equal(evaluated.prediction, prediction[[0, 1, 2, 4]])
    np.testing.assert_array_equal(evaluated.sequence, [0, 0, 0, 1])


def test_a_split_does_not_see_the_next_one() -> None:
    spec = TaskSpec("forecast", ("a", "b"), ("b",))
    mask = np.array([False, True, True, False, True, True])
    evaluated = align_with_truth(spec, two_keys(), np.zeros(6, np.float32), np.zeros((6, 1), np.float32), mask)
    np.testing.assert_array_equal(
        evaluated.truth, [[30]]
    )  # not 40, which is of another part; the second key's is missing
    np.testing.assert_array_equal(evaluated.naive, [[20]])


def test_the_label_of_a_sequence_is_known_at_its_last_event_and_the_daemon_answers_all() -> None:
    spec = TaskSpec("classify", ("a", "b"), classes=("no", "yes"), per="sequence")
    events = two_keys(label=[0, 0, 0, 1, -1, 0])
    score = np.arange(6, dtype=np.float32) / 10
    evaluated = align_with_truth(spec, events, score, None)
    assert evaluated.label.tolist() == [-1, -1, -1, 1, -1, 0]
    assert evaluated.alert_label.tolist() == [1, 1, 1, 1, 0, 0]
    np.testing.assert_array_equal(evaluated.score, score)
    mask = np.array([True, True, True, False, True, True])  # the first key ends in another split: its label is too
    evaluated = align_with_truth(spec, events, score, None, mask)
    assert evaluated.alert_label.tolist() == [-1, -1, -1, 0, 0]
    assert evaluated_rows(spec, events, score, mask).tolist() == [0, 1, 2, 4, 5]


def test_outputs_that_are_not_finite_do_not_count() -> None:
    spec = TaskSpec("classify", ("a", "b"))
    score = np.array([0.1, NAN, 0.3, 0.4, NAN, 0.6], np.float32)
    evaluated = align_with_truth(spec, two_keys(label=[0, 1, 1, 0, 0, 1]), score, None)
    assert evaluated.label.tolist() == [0, 1, 0, 1]
    assert evaluated.names == ("0", "1")


def test_an_anomaly_has_a_truth_and_keeps_every_event() -> None:
    spec = TaskSpec("anomaly", ("a", "b"), ("b",))
    evaluated = align_with_truth(spec, two_keys(), np.zeros(6, np.float32), np.zeros((6, 1), np.float32))
    np.testing.assert_array_equal(evaluated.truth, [[20], [30], [40], [NAN], [NAN], [NAN]])
    assert not evaluated.has_labels


def test_columns_that_do_not_fit_are_refused() -> None:
    spec = TaskSpec("forecast", ("a", "b"), ("a", "b"))
    with pytest.raises(CannotServe, match="forecasts 3 values, but 1 ahead of 'a', 'b' are 2"):
        align_with_truth(spec, two_keys(), np.zeros(6, np.float32), np.zeros((6, 3), np.float32))


def trained(folder: Path, *, task: str = "classify", outputs: int = 1, **fields: Any) -> Path:
    """A random model of numbers `a`, `b` whose card has training facts, if any are given."""
    network = random_network(numbers=("a", "b"), outputs=outputs)
    if task == "forecast":
        network = replace(network, head=DenseHead(network.head.weight, network.head.bias, "none"))
    training = {"fields": {"key": "key", "timestamp": "time", **fields}} if fields else {}
    card = replace(card_of(network, threshold=None if task == "forecast" else 0.5), task=task, training=training)
    return write(folder / "model.onnx", build(network), card)


def table(folder: Path, *, labels: list[Any], keys: int = 30) -> Path:
    """JSON lines of random events in the order of time, `labels` in turn."""
    rng = np.random.default_rng(8)
    path = folder / "data.jsonl"
    lines = []
    for i in range(600):
        event = {"key": f"k{rng.integers(keys)}", "time": 1_770_000_000 + 60 * i, "a": rng.normal(), "b": rng.normal()}
        lines.append(json.dumps(event | {"fraud": labels[i % len(labels)]}))
    path.write_text("\n".join(lines))
    return path


def answers(model: Path, data: Path, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(events, predictions) of the daemon's engine, in the order of the file."""
    out = folder / "out.jsonl"
    score_file(str(model), str(data), out=str(out), key="key", timestamp="time", dead_letters=None)
    return ([json.loads(line) for line in path.read_text().splitlines()] for path in (data, out))  # type: ignore[return-value]


def asked(capsys: pytest.CaptureFixture[str], model: Path, data: Path, **options: Any) -> dict[str, Any]:
    assert evaluate(str(model), str(data), as_json=True, **{"resamples": 20, **options}) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_classification_by_the_cards_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(tmp_path, target="fraud", classes=["0", "1"])
    data = table(tmp_path, labels=[0, 1, 0, 0, None])
    found = asked(capsys, model, data, k=[10])
    events, said = answers(model, data, tmp_path)
    pairs = [(answer["score"], event["fraud"]) for event, answer in zip(events, said, strict=True)]
    known = [(score, label) for score, label in pairs if label is not None]
    assert found["metrics"]["brier"]["value"] == pytest.approx(np.mean([(s - y) ** 2 for s, y in known]))
    top = sorted(known, reverse=True)[:10]
    assert found["metrics"]["precision_at_10"]["value"] == pytest.approx(np.mean([y for _, y in top]))
    assert found["metrics"]["alert_share"]["value"] == pytest.approx(np.mean([s >= 0.5 for s, _ in pairs]))
    assert found["labels"] == {"0": 360, "1": 120}
    assert (found["events"], found["keys"], found["judged"], found["resampled"]) == (
        600,
        30,
        600,
        "keys and blocks of time",
    )
    assert found["metrics"]["roc_auc"]["low"] < found["metrics"]["roc_auc"]["high"]


def test_labels_of_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alerts on every event, right or wrong by the key's label; ranks at the last events."""
    model = trained(tmp_path, target="fraud", classes=["0", "1"], per="sequence")
    data = table(tmp_path, labels=[0, 1, 0, 1, None])
    found = asked(capsys, model, data)
    events, said = answers(model, data, tmp_path)
    last = {event["key"]: row for row, event in enumerate(events)}
    label = {key: events[row]["fraud"] for key, row in last.items() if events[row]["fraud"] is not None}
    alerted = [event["key"] for event, answer in zip(events, said, strict=True) if answer["alert"]]
    metrics = {name: interval["value"] for name, interval in found["metrics"].items()}
    days = 599 * 60 / 86400
    assert metrics["alerts_per_day"] == pytest.approx(len(alerted) / days)
    judged = [label[key] for key in alerted if key in label]
    assert metrics["precision"] == pytest.approx(np.mean(judged))
    positives = {key for key in label if label[key]}
    assert metrics["recall"] == pytest.approx(len(positives & set(alerted)) / len(positives))
    assert metrics["brier"] == pytest.approx(np.mean([(said[last[key]]["score"] - label[key]) ** 2 for key in label]))
    assert len(label) < 30
    assert (found["judged"], sum(found["labels"].values())) == (len(label), len(label))
    assert evaluate(str(model), str(data), resamples=0) == 0
    assert f"{len(label)} keys have a label at their last event" in " ".join(capsys.readouterr().out.split())


def test_a_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(tmp_path, task="forecast", targets=["b"], horizon=1)
    data = table(tmp_path, labels=[0], keys=3)
    found = asked(capsys, model, data)
    events, said = answers(model, data, tmp_path)
    errors, naive = [], []
    for key in {event["key"] for event in events}:
        own = [i for i, event in enumerate(events) if event["key"] == key]
        for now, after in pairwise(own):
            errors.append(abs(said[now]["prediction"][0] - events[after]["b"]))
            naive.append(abs(events[now]["b"] - events[after]["b"]))
    assert found["judged"] == 597
    assert found["resampled"] == "blocks of time"
    assert found["metrics"]["mae"]["value"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert found["metrics"]["mase"]["value"] == pytest.approx(np.sum(errors) / np.sum(naive), rel=1e-5)


def test_the_horizon_of_an_imported_model_is_its_number_of_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(tmp_path, task="forecast", outputs=3)
    found = asked(capsys, model, table(tmp_path, labels=[0]), key="key", timestamp="time", target="a")
    assert {"mae[a t+1]", "mae[a t+2]", "mae[a t+3]"} <= set(found["metrics"])
    with pytest.raises(CannotServe, match="forecasts 3 values"):
        asked(capsys, model, tmp_path / "data.jsonl", key="key", timestamp="time")
    with pytest.raises(CannotServe, match="--target: 'c' is not a number that the model reads; it reads 'a', 'b'"):
        asked(capsys, model, tmp_path / "data.jsonl", target="c")


def test_classes_of_an_imported_model_are_as_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(tmp_path, outputs=3)
    found = asked(capsys, model, table(tmp_path, labels=[10, 9, 2]), key="key", timestamp="time", target="fraud")
    assert list(found["labels"]) == ["2", "9", "10"]
    assert {"accuracy", "macro_f1", "recall[10]"} <= set(found["metrics"])
    with pytest.raises(CannotServe, match=r"has 4 values .* but the model has 3 classes; is it the label"):
        asked(capsys, model, table(tmp_path, labels=[1, 2, 3, 4]), target="fraud")
    with pytest.raises(CannotServe, match="their order is not known"):
        asked(capsys, model, table(tmp_path, labels=["x", "y"]), target="fraud")


def test_anomalies_with_and_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(tmp_path, task="anomaly", outputs=2, targets=["a", "b"])
    data = table(tmp_path, labels=[0, 0, 1])
    assert "average_precision" not in asked(capsys, model, data)["metrics"]
    found = asked(capsys, model, data, target="fraud")
    assert {"average_precision", "score_p99", "alert_share", "mase"} <= set(found["metrics"])
    assert "brier" not in found["metrics"]


def test_the_table_names_data_metrics_and_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(tmp_path, outputs=3, target="fraud", classes=["a", "[b]", "c"])
    assert evaluate(str(model), str(table(tmp_path, labels=["a", "[b]", "c"])), resamples=5) == 0
    said = capsys.readouterr().out
    assert "600 events of 30 keys, 2026-02-02T" in said
    assert "recall[[b]]" in said
    assert "Intervals: 5 resamples of keys and blocks of time." in said


def test_a_long_table_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class-{n}" for n in range(60)]
    model, data = trained(tmp_path, outputs=60, target="fraud", classes=names), table(tmp_path, labels=names)
    assert evaluate(str(model), str(data), resamples=2) == 0
    said = capsys.readouterr().out
    assert said.count("recall[") + said.count("macro_f1") + said.count("accuracy") <= MAX_METRICS
    assert "macro_f1" in said
    metrics = asked(capsys, model, data)["metrics"]
    assert len(metrics) > 60
    assert f"{len(metrics) - MAX_METRICS} more metrics of single classes or columns: use --json" in said


def test_the_models_own_training_data_are_known_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path, labels=[0, 1])
    model = trained(tmp_path, target="fraud")
    card = load_model(model).card
    digest = load_events_for_card([data], card, key="key", timestamp="time", target="fraud").sha256
    assert asked(capsys, model, data)["trained_on"] is False
    network = random_network(numbers=("a", "b"))
    write(model, build(network), replace(card, training=card.training | {"data": {"sha256": digest}}))
    assert asked(capsys, model, data)["trained_on"] is True
    evaluate(str(model), str(data), resamples=2)
    assert "The model was trained on these data" in capsys.readouterr().out


def test_a_share_of_training_data_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model has seen keys k0 to k9 until the 400th of 600 minutes."""
    data = table(tmp_path, labels=[0, 1])
    model = trained(tmp_path, target="fraud")
    card, network = load_model(model).card, random_network(numbers=("a", "b"))
    events = load_events_for_card([data], card, key="key", timestamp="time", target="fraud")
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    early = 1_770_000_000 + 60 * 400
    learned = [row for row in range(600) if events.timestamp[row] < 1000 * early and owner(events)[row] < "k1~"]
    record = training_record("train", events, np.array(learned))
    training = card.training | {"learned_from": [record], "data": {"sha256": events.sha256}}
    write(model, build(network), replace(card, training=training))
    seen = [line for line in lines if line["key"] < "k1~" and line["time"] <= max(events.timestamp[learned]) / 1000]
    first = min(events.timestamp[learned]) / 1000
    seen = [line for line in seen if line["time"] >= first]
    found = asked(capsys, model, data)
    assert found["share_in_training_data"] == pytest.approx(len(seen) / 600)
    assert 0.1 < found["share_in_training_data"] < 0.5
    evaluate(str(model), str(data), resamples=2)
    said = " ".join(capsys.readouterr().out.split())
    assert f"warning: {len(seen) / 600:.0%} of these events lie in the data that the model was trained on" in said
    later = "2026-02-02T09:30:00Z"
    assert asked(capsys, model, data, since=later)["share_in_training_data"] == 0
    evaluate(str(model), str(data), resamples=2, since=later)
    said = capsys.readouterr().out
    assert "warning" not in said
    assert "was trained on these data" not in said  # the file is that of the training, but not these events


def owner(events: Any) -> Any:
    return np.repeat(np.array(events.keys), np.diff(events.starts))


def test_earlier_events_only_fill_the_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a time on, the numbers are those of a daemon that has seen what came before, not of empty states."""
    model = trained(tmp_path, target="fraud", classes=["0", "1"])
    data = table(tmp_path, labels=[0, 1, 0])
    events, said = answers(model, data, tmp_path)
    since = events[400]["time"]
    text = datetime.fromtimestamp(since, UTC).isoformat()
    found = asked(capsys, model, data, since=text)
    pairs = [(answer["score"], event["fraud"]) for event, answer in zip(events, said, strict=True)][400:]
    assert (found["judged"], found["since"]) == (200, text)
    assert found["metrics"]["brier"]["value"] == pytest.approx(np.mean([(s - y) ** 2 for s, y in pairs]))
    app(["evaluate", str(model), str(data), "--resamples", "10", "--from", text], standalone_mode=False)
    assert f"Events before {text} only give the keys their states." in " ".join(capsys.readouterr().out.split())
    (tmp_path / "later").mkdir()
    later = tmp_path / "later" / "data.jsonl"
    later.write_text("\n".join(data.read_text().splitlines()[400:]))
    cold = asked(capsys, model, later)
    assert cold["metrics"]["brier"]["value"] != pytest.approx(found["metrics"]["brier"]["value"], rel=1e-6)
    evaluate(str(model), str(later), resamples=2)
    assert "Every key starts with an empty state here" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(CannotServe, match="--from soon: is not an ISO 8601 time"):
        evaluate(str(model), str(data), since="soon")
    with pytest.raises(CannotServe, match="--from 2030-01-01: all events are earlier; the last is of 2026-02-02T"):
        evaluate(str(model), str(data), since="2030-01-01")


@pytest.mark.parametrize(
    ("fields", "labels", "options", "said"),
    [
        ({}, [0, 1], {}, "does not name the field of the label; give --target COLUMN"),
        ({"target": "fraud"}, [0], {}, "all 600 labelled events are of class '0'"),
        ({"target": "fraud", "classes": ["0", "1"]}, ["x"], {}, "field 'fraud' is never one of '0', '1'"),
        ({"target": "fraud"}, [None], {}, "no event has a label"),
        ({"target": "fraud"}, [0, 1], {"key": "card"}, "field 'card'"),
        ({"target": "fraud"}, [0, 1], {"key": "fraud"}, "--target fraud: is the key too, which would tell the label"),
        ({"target": "class"}, [0, 1], {}, "field 'class'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    tmp_path: Path, fields: dict[str, Any], labels: list[Any], options: dict[str, Any], said: str
) -> None:
    model = trained(tmp_path, **fields)
    with pytest.raises(CannotServe, match=said):
        evaluate(str(model), str(table(tmp_path, labels=labels)), **options)


def test_no_file_no_events_no_next_event(tmp_path: Path) -> None:
    model = trained(tmp_path, task="forecast", targets=["a"])
    with pytest.raises(CannotServe, match=r"nowhere\.jsonl: no such file"):
        evaluate(str(model), str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CannotServe, match="has no events"):
        evaluate(str(model), str(tmp_path / "empty.jsonl"))
    events = [{"key": "x", "time": 1, "a": 1.5, "b": 2}, {"key": "y", "time": 2, "a": 3, "b": 4}]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(CannotServe, match="no event is followed by another of its key"):
        evaluate(str(model), str(tmp_path / "one.jsonl"))


def test_numbers_as_text() -> None:
    texts = ["0.7123", "12.35", "1,234,568", "-"]
    assert [format_number(value) for value in (0.71234, 12.3456, 1_234_567.8, NAN)] == texts


def test_times_in_another_unit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = trained(tmp_path, target="fraud", classes=["0", "1"]), table(tmp_path, labels=[0, 1])
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("\n".join(json.dumps({**line, "time": line["time"] / 86_400}) for line in lines))
    assert evaluate(str(model), str(data), as_json=True, resamples=20) == 0
    assert "all times of 'time' lie before 1971" in capsys.readouterr().err
