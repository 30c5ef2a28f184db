"""A training configuration: its defaults, and a path with a remedy for each fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.errors import CannotServe
from lstmstream.train.schema import TrainConfig, config_text, load_training, training_options, validate_training

LEAST = """
name: card-fraud
task: classify
data: {path: transactions.parquet, key: customer, timestamp: time}
features: {numbers: [amount]}
target: {field: fraud}
"""
WHOLE = """
name: card-fraud
version: "2"
task: classify
data:
  path: [transactions.parquet, "more/*.csv"]
  key: customer.id
  timestamp: time
features:
  numbers: [amount, {name: distance_km, log: true, scale: robust}]
  categories: [merchant, {name: terminal, buckets: 1000, width: 8}]
  elapsed: true
  hour_of_day: true
  day_of_week: false
target: {field: fraud, per: event}
split: {by: time, validation: 0.2, test: 0.1, gap: 7d}
model: {cell: LSTM, layers: 2, hidden: 64, projection: 32, dropout: 0.1, activation: tanh, window: null}
training: {epochs: 30, patience: 5, batch: 64, steps: 64, optimizer: adamw, learning_rate: 1e-3, schedule: plateau,
           clip: 1.0, weight_decay: 0, class_weights: [1, 2.5], noise: 0.0, mask: 0.1, seed: 7, device: CPU, threads: 2}
threshold: {rule: cost, cost: {missed: 100, alert: 2}}
"""


def validated(text: str, base: str = LEAST) -> TrainConfig:
    """The configuration `base` with the sections in `text` merged into it."""
    tree = yaml.safe_load(base)
    for name, values in yaml.safe_load(text).items():
        merge = isinstance(tree.get(name), dict) and isinstance(values, dict)
        tree[name] = {**tree[name], **values} if merge else values
    return validate_training(tree, Path("/folder"))


def faults(text: str, base: str = LEAST) -> list[str]:
    with pytest.raises(CannotServe) as caught:
        validated(text, base)
    return list(caught.value.problems)


# --- what is right -----


def test_the_least_and_the_defaults() -> None:
    config = validated("{}")
    assert (config.name, config.version, config.task, config.out) == ("card-fraud", "1", "classify", None)
    assert config.folder == Path("/folder")
    data, target, split = config.data, config.target, config.split
    assert (data.source, data.path, data.key, data.timestamp) == ("files", ["transactions.parquet"], "customer", "time")
    assert (data.start, data.end, config.kafka.bootstrap_servers) == ("earliest", "latest", ["127.0.0.1:9092"])
    (amount,) = config.features.numbers
    assert (amount.name, amount.log, amount.scale) == ("amount", False, "standard")
    features = config.features
    assert (features.categories, features.elapsed, features.hour_of_day, features.day_of_week) == (
        [],
        False,
        False,
        False,
    )
    assert (target.field, target.per, target.fields, target.horizon, target.residual) == ("fraud", "event", [], 1, True)
    assert (split.by, split.validation, split.test, split.gap) == ("time", 0.15, 0.15, 0)
    assert {name for name, value in config.model if value is None} == {"projection", "window"}
    model = config.model
    assert (model.cell, model.layers, model.hidden, model.dropout, model.activation) == ("lstm", 1, 64, 0, "tanh")
    options = config.training
    assert (options.epochs, options.patience, options.batch, options.steps) == (30, 5, None, 64)
    assert (options.optimizer, options.class_weights, options.clip, options.device) == ("adam", "none", 1, "auto")
    assert (options.noise, options.mask, options.weight_decay, options.seed) == (0, 0, 0, 0)
    assert (config.threshold.rule, config.threshold.value, config.threshold.alerts_per_day) == ("auto", None, None)


def test_the_whole() -> None:
    config = validated("{}", WHOLE)
    assert config.data.path == ["transactions.parquet", "more/*.csv"]
    assert [(n.name, n.log, n.scale) for n in config.features.numbers] == [
        ("amount", False, "standard"),
        ("distance_km", True, "robust"),
    ]
    assert [(c.name, c.buckets, c.min_count, c.width) for c in config.features.categories] == [
        ("merchant", None, 2, None),
        ("terminal", 1000, 2, 8),
    ]
    assert (config.model.cell, config.model.projection, config.model.window) == ("lstm", 32, None)
    assert (config.training.learning_rate, config.training.device) == (0.001, "cpu")
    assert config.training.class_weights == [1, 2.5]
    assert config.split.gap == 7 * 86_400
    assert (config.threshold.cost.missed, config.threshold.cost.alert) == (100, 2)


def test_short_forms() -> None:
    assert [n.name for n in validated('features: {numbers: "amount, age"}').features.numbers] == ["amount", "age"]
    assert validated("data: {path: [a.csv, b.csv]}").data.path == ["a.csv", "b.csv"]
    assert validated("model: null").model.hidden == 64
    assert validated("threshold: {rule: none}").threshold.rule == "none"
    assert validated('training: {class_weights: "balanced"}').training.class_weights == "balanced"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2018-07-01", "2018-07-01"),
        ('"2018-07-01"', "2018-07-01"),
        ("2018-07-01T12:00:00Z", "2018-07-01T12:00:00+00:00"),
        ("2018-07-01 12:00:00+02:00", "2018-07-01T12:00:00+02:00"),
    ],
)
def test_dates_with_and_without_quotes(written: str, read: str) -> None:
    assert validated(f"split: {{validation_from: {written}}}").split.validation_from == read
    kafka = "data: {from: kafka, topic: t, path: [], start: %s, end: 17}"
    data = validated(kafka % written).data
    assert (data.start, data.end) == (read, 17)


def test_columns_that_are_forecast() -> None:
    forecast = "{task: forecast, features: {numbers: [a, b, c]}, target: {field: null%s}}"
    assert validated(forecast % "").targets == (0, 1, 2)
    assert validated(forecast % ', fields: "c, a"').targets == (2, 0)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(WHOLE)
    assert load_training(file).folder == tmp_path.resolve()
    file.write_text(WHOLE.replace("hidden: 64", "hiden: 64"))
    with pytest.raises(CannotServe, match=r"^model.hiden: unknown key; did you mean hidden\? \(line 17, column 32\)$"):
        load_training(file)
    file.write_text("")
    with pytest.raises(CannotServe, match="is empty"):
        load_training(file)
    with pytest.raises(CannotServe, match=r"none\.yaml"):
        load_training(tmp_path / "none.yaml")


def test_every_option_is_described() -> None:
    assert {"features.numbers", "features.numbers.scale", "data.from", "threshold.cost.missed"} <= {
        option.path for option in training_options()
    }
    for option in training_options():
        assert option.description.strip(), option.path


# --- what is wrong with one option -----


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: a b", "name: is not a valid name; use 1 to 200 of the characters"),
        ("version: 1", "version: must be text; put it in quotes"),
        ("task: cluster", "task: must be one of forecast, classify, anomaly; got 'cluster'"),
        ("out: 5", "out: must be the path of a file"),
        ("modell: {}", "modell: unknown key; did you mean model?"),
        ("training: 5", "training: must be a section of keys; indent them below it"),
        ("data: {from: s3}", "data.from: must be one of files, kafka"),
        ("data: {path: ['']}", "data.path.0: is empty"),
        ("data: {path: [5]}", "data.path.0: must be text; put it in quotes"),
        ("data: {key: a..b}", "data.key: is not a valid field; write its name, with dots"),
        ("data: {timestamp: ''}", "data.timestamp: is not a valid field"),
        ("data: {from: kafka, topic: a b}", "data.topic: is not a valid topic name; use"),
        ("data: {start: [1]}", "data.start: must be earliest, latest, an offset or an ISO 8601 time; write one"),
        ("data: {end: true}", "data.end: must be earliest"),
        ("kafka: {bootstrap_servers: nope}", "kafka.bootstrap_servers: entry 1 is not host:port; write it like"),
        ("features: {numbr: [a]}", "features.numbr: unknown key; did you mean numbers?"),
        ("features: {numbers: [5]}", "features.numbers.0: must be a section of keys"),
        ("features: {numbers: {a: 1}}", "features.numbers: must be a list; write [one, other]"),
        ("features: {numbers: [a..b]}", "features.numbers.0.name: is not a valid field"),
        ("features: {numbers: [b, {name: a, scle: none}]}", "features.numbers.1.scle: unknown key; did you mean scale"),
        ("features: {numbers: [{name: a, scale: max}]}", "features.numbers.0.scale: must be one of standard, robust"),
        ("features: {numbers: [{name: a, log: 7}]}", "features.numbers.0.log: must be true or false"),
        ("features: {numbers: [{log: true}]}", "features.numbers.0.name: is missing; set it (the event's field)"),
        ("features: {categories: [{name: a, widht: 1}]}", "features.categories.0.widht: unknown key; did you mean"),
        ("features: {categories: [{name: a, buckets: 0}]}", "features.categories.0.buckets: must be greater than or"),
        ("features: {categories: [{name: a, min_count: 0}]}", "features.categories.0.min_count: must be greater than"),
        ("features: {elapsed: maybe}", "features.elapsed: must be true or false"),
        ("target: {classes: [0, 1]}", "target.classes.0: must be text; put it in quotes"),
        ("target: {per: day}", "target.per: must be one of event, sequence"),
        ("target: {horizon: 0}", "target.horizon: must be greater than or equal to 1"),
        ("target: {memory: 0}", "target.memory: must be greater"),
        ("target: {loss: l3}", "target.loss: must be one of mse, mae, huber"),
        ("target: {fields: [a, a]}", "target.fields: names a field twice; list each field once"),
        ("split: {by: luck}", "split.by: must be one of time, key, given"),
        ("split: {validation: 1}", "split.validation: must be less than 1"),
        ("split: {test: -0.1}", "split.test: must be greater than or equal to 0"),
        ("split: {test: true}", "split.test: must be a number, not true or false; write a number"),
        ("split: {test: .nan}", "split.test: must be a finite number"),
        ("split: {gap: 7}", "split.gap: needs a unit; write it like 30s"),
        *(
            (f"split: {{{name}: soon}}", f"split.{name}: is not an ISO 8601 time; write 2026-01-31 or 2026-01-31T12")
            for name in ("train_from", "train_to", "validation_from", "test_from", "test_to")
        ),
        ("split: {test_to: 5}", "split.test_to: is not an ISO 8601 time"),
        ("model: {cell: rnn}", "model.cell: must be one of lstm, gru"),
        ("model: {layers: 0}", "model.layers: must be greater"),
        ("model: {hidden: 10000}", "model.hidden: must be less than or equal to 8192"),
        ("model: {dropout: 1}", "model.dropout: must be less than 1"),
        ("model: {activation: elu}", "model.activation: must be one of tanh, relu"),
        ("model: {window: 0}", "model.window: must be greater"),
        ("training: {epochz: 1}", "training.epochz: unknown key; did you mean epochs?"),
        ("training: {epochs: 1.5}", "training.epochs: must be a whole number"),
        ("training: {epochs: true}", "training.epochs: must be a number, not true or false"),
        ("training: {patience: 0}", "training.patience: must be greater"),
        ("training: {monitor: auc}", "training.monitor: must be one of auto, loss, average_precision"),
        ("training: {batch: 0}", "training.batch: must be greater"),
        ("training: {steps: 0}", "training.steps: must be greater"),
        ("training: {optimizer: lion}", "training.optimizer: must be one of adam, adamw, sgd"),
        ("training: {learning_rate: 0}", "training.learning_rate: must be greater than 0"),
        ("training: {learning_rate: true}", "training.learning_rate: must be a number, not true or false"),
        ("training: {schedule: step}", "training.schedule: must be one of none, cosine, plateau"),
        ("training: {clip: 0}", "training.clip: must be greater than 0"),
        ("training: {weight_decay: -1}", "training.weight_decay: must be greater than or equal to 0"),
        *(
            (f"training: {{class_weights: {wrong}}}", "training.class_weights: must be none, balanced, or a list of")
            for wrong in ("some", "[1, 0]", "[1, x]", "[1, true]", "[1, .inf]", "3", "{a: 1}")
        ),
        ("training: {noise: -1}", "training.noise: must be greater"),
        ("training: {mask: 1}", "training.mask: must be less than 1"),
        ("training: {seed: -1}", "training.seed: must be greater"),
        ("training: {device: tpu}", "training.device: must be one of auto, cpu, cuda"),
        ("training: {threads: 0}", "training.threads: must be greater"),
        ("threshold: {rule: f2}", "threshold.rule: must be one of auto, f1, alerts_per_day, cost, value, none"),
        ("threshold: {alerts_per_day: 0}", "threshold.alerts_per_day: must be greater than 0"),
        ("threshold: {cost: {missed: 0}}", "threshold.cost.missed: must be greater than 0"),
        ("threshold: {cost: {alert: -1}}", "threshold.cost.alert: must be greater than 0"),
        ("threshold: {cost: {mised: 1}}", "threshold.cost.mised: unknown key; did you mean missed?"),
        ("threshold: {value: high}", "threshold.value: must be a number"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_with_what_to_do(text: str, fault: str) -> None:
    found = faults(text)
    assert found[0].startswith(fault)


def test_all_at_once() -> None:
    found = faults("{task: cluster, features: {numbers: [{nme: a}]}, training: {epochs: 0, batch: x}}")
    assert [one.split(":")[0] for one in found] == [
        "task",
        "features.numbers.0.name",
        "features.numbers.0.nme",
        "training.epochs",
        "training.batch",
    ]
    with pytest.raises(CannotServe) as caught:
        validate_training({}, Path())
    assert [one.split(":")[0] for one in caught.value.problems] == ["name", "task", "data.path", "features"]
    assert all("is missing; " in one for one in caught.value.problems[:3])


# --- what is wrong between options -----

FORECAST = "task: forecast, target: {field: null}"
ANOMALY = "task: anomaly, target: {field: null}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {path: []}", ["data.path: is missing; name a CSV, JSONL or Parquet file"]),
        ("data: {from: kafka}", ["data.topic: is missing; name the topic to read"]),
        (
            "{data: {timestamp: null}, features: {elapsed: true, day_of_week: true}}",
            [
                f"features.{name}: needs data.timestamp, because the daemon feeds real event times; set that, or remove"
                " this"
                for name in ("elapsed", "day_of_week")
            ],
        ),
        (
            "tune: {layers: [1, 20], dropout: [0, 1]}",
            [
                "tune.layers: its upper bound must be less than or equal to 16; got 20",
                "tune.dropout: its upper bound must be less than 1; got 1.0",
            ],
        ),
        (
            "split: {validation: 0}",
            ["split.validation: is 0, but validation selects the epoch and the threshold; make it larger"],
        ),
        (
            f"{{{FORECAST}, threshold: {{rule: f1}}}}",
            ["threshold.rule: f1 does not apply to forecasts; write rule: value, or remove it"],
        ),
        (
            "threshold: {rule: value, value: 50}",
            ["threshold.value: 50 is above every score of task: classify, which are from 0 to 1; lower it"],
        ),
        (
            "data: {key: fraud}",
            ["target.field: fraud is data.key too, and a label that the key tells needs no model; name another field"],
        ),
        ("features: {numbers: []}", ["features: is empty; list at least one of numbers or categories"]),
        ("features: {numbers: [a, b, a]}", ["features.numbers: a is listed twice; keep one"]),
        ("features: {categories: [a, {name: a, width: 2}]}", ["features.categories: a is listed twice; keep one"]),
        ("target: {field: null}", ["target.field: is missing; name the field that holds the label"]),
        (
            "target: {fields: [amount]}",
            ["target.fields: is for forecasts; for task: classify, name the label in target.field"],
        ),
        ("target: {classes: ['0']}", ["target.classes: needs two or more values, each listed once"]),
        ("target: {classes: ['0', '1', '0']}", ["target.classes: needs two or more values, each listed once"]),
        (
            f"{{{FORECAST}, features: {{numbers: [], elapsed: true}}}}",
            ["features.numbers: is empty, and task: forecast forecasts numbers; list at least one"],
        ),
        (
            "{task: anomaly, target: {field: null, fields: [b]}}",
            ["target.fields: b is not one of features.numbers; add it there, because it is an input as well"],
        ),
        (
            "{task: anomaly, target: {horizon: 2}}",
            ["target.horizon: anomaly detection forecasts one event ahead; remove it"],
        ),
        ("task: forecast", ["target.field: is for labels; list the fields to forecast in target.fields"]),
        (
            "{task: anomaly, target: {per: sequence}}",
            ["target.per: sequence needs task: classify, not anomaly; remove it"],
        ),
        (
            "split: {validation: 0.5, test: 0.5}",
            ["split.test: validation and test together leave nothing to train on; make them smaller"],
        ),
        (
            "split: {by: given}",
            ["split.field: is missing; name the field that holds train, validation or test"],
        ),
        ("split: {field: part}", ["split.field: has no effect without by: given; set that, or remove this"]),
        (
            "split: {by: key, test_from: 2018-07-01}",
            ["split.test_from: a date needs split.by: time; set that, or remove this"],
        ),
        ("split: {by: key, gap: 7d}", ["split.gap: a gap needs split.by: time; set that, or remove this"]),
        (
            "model: {cell: GRU, projection: 8}",
            ["model.projection: only an LSTM has a projection; remove it, or use cell: lstm"],
        ),
        (
            "model: {cell: mingru, projection: 8}",
            ["model.projection: only an LSTM has a projection; remove it, or use cell: lstm"],
        ),
        (
            "model: {cell: s4d, activation: relu}",
            ["model.activation: s4d has its own activations; remove it, or use cell: lstm or gru"],
        ),
        ("model: {projection: 64}", ["model.projection: 64 must be less than model.hidden (64); change one of them"]),
        (
            "threshold: {rule: alerts_per_day}",
            ["threshold.alerts_per_day: is missing; write how many alerts per day can be investigated"],
        ),
        (
            "threshold: {rule: value}",
            ["threshold.value: is missing; write the lowest score that is an alert"],
        ),
        *(
            (
                f"threshold: {{{name}: {value}}}",
                [f"threshold.{name}: has no effect with rule: auto; write rule: {name}, or remove it"],
            )
            for name, value in (("alerts_per_day", 20), ("value", 0.5), ("cost", "{missed: 5}"))
        ),
        (
            f"{{{FORECAST}, training: {{monitor: average_precision}}}}",
            ["training.monitor: average_precision needs task: classify; use loss"],
        ),
    ],
)
def test_what_does_not_go_together(text: str, expected: list[str]) -> None:
    assert faults(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "data: {from: kafka, topic: t}",
        "features: {numbers: [], elapsed: true}",
        "features: {numbers: [a], categories: [a]}",
        f"{{{ANOMALY}}}",
        "{task: anomaly, target: {field: fraud}}",  # measured with
        "split: {by: given, field: part}",
        "split: {validation_from: 2018-07-01, gap: 7d}",
        "model: {projection: 63}",
        "threshold: {rule: alerts_per_day, alerts_per_day: 20}",
        "threshold: {rule: cost}",
        "threshold: {rule: value, value: 0}",
    ],
)
def test_what_goes_together(text: str) -> None:
    assert validated(text).name == "card-fraud"


def test_conflicts_are_reported_together() -> None:
    found = faults("{split: {by: key, gap: 1d}, model: {projection: 99}, threshold: {rule: value}}")
    assert [one.split(":")[0] for one in found] == ["split.gap", "model.projection", "threshold.value"]


def test_conflicts_are_reported_beside_wrong_options() -> None:
    found = faults("{training: {epochs: 0}, split: {by: key, gap: 1d}, threshold: {rule: value}}")
    assert [one.split(":")[0] for one in found] == ["training.epochs", "split.gap", "threshold.value"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("{task: cluster, target: {field: null}}", "task"),  # with the placeholder's task the label would be missing
        ("{data: {from: kafkaesque}}", "data.from"),
        ("{features: {numbers: [{name: a, scale: max}]}}", "features.numbers.0.scale"),
        ("{features: {numbrs: [a], numbers: []}}", "features.numbrs"),  # not: features is empty
        ("{split: {by: luck, gap: 1d}}", "split.by"),
        ("{threshold: {rule: f2, value: 1}}", "threshold.rule"),
        ("{model: {cell: rnn, projection: 100}}", "model.cell"),
    ],
)
def test_a_conflict_with_a_wrong_option_is_not_reported(text: str, path: str) -> None:
    found = [one.split(":")[0] for one in faults(text)]
    assert found == [path] + (["model.projection"] if path == "model.cell" else [])


keys = st.sampled_from(
    [
        "name", "task", "data", "features", "target", "split", "model", "training", "threshold", "tune", "kafka",
        "path", "from", "numbers", "categories", "field", "fields", "by", "gap", "cell", "epochs", "rule", "cost",
        "layers", "security", "password",
    ]
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates()
trees = st.dictionaries(
    keys,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=15,
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(changes=trees)
def test_any_tree_gives_a_configuration_or_says_what_is_wrong(changes: dict[str, Any]) -> None:
    problems: tuple[str, ...] = ()
    try:
        validate_training(yaml.safe_load(LEAST) | changes, Path("/folder"))
    except CannotServe as error:
        problems = error.problems or ("no problem is named",)
    assert all(problem.isprintable() and ": " in problem for problem in problems)


def test_nothing_can_be_changed() -> None:
    config: Any = validated("{}")
    with pytest.raises(ValueError, match="frozen"):
        config.model.hidden = 5


# --- secrets and reports -----


def test_a_password_may_come_from_the_environment_and_no_report_shows_the_section(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(
        LEAST.replace("data:", "kafka: {security: {protocol: SASL_SSL, mechanism: PLAIN, username: u}}\ndata:", 1)
    )
    tree = yaml.safe_load(file.read_text())
    tree["data"] = {"from": "kafka", "topic": "t"}
    file.write_text(yaml.safe_dump(tree))
    environ = {"LSTMSTREAM_KAFKA__SECURITY__PASSWORD": "hunter2", "LSTMSTREAM_INPUT__TOPIC": "of the daemon"}
    config = load_training(file, environ)
    assert config.kafka.security.password is not None
    assert config.kafka.security.password.get_secret_value() == "hunter2"
    tree["kafka"]["security"]["password"] = "hunter2"
    file.write_text(yaml.safe_dump(tree))
    assert "hunter2" not in config_text(file)
    assert yaml.safe_load(config_text(file)) == {name: value for name, value in tree.items() if name != "kafka"}


def test_the_kafka_section_is_checked_as_the_daemons_is(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(LEAST.replace("path: transactions.parquet", "from: kafka, topic: t"))
    environ = {
        "LSTMSTREAM_KAFKA__SECURITY__PROTOCOL": "SASL_SSL",
        "LSTMSTREAM_KAFKA__SECURITY__CA": "missing.pem",
        "LSTMSTREAM_KAFKA__PROPERTIES__BATCH_SIZE": "many",
    }
    with pytest.raises(CannotServe) as caught:
        load_training(file, environ)
    batch_size, mechanism, ca = caught.value.problems
    assert batch_size == (
        "kafka.properties.batch.size: must be a whole number (from LSTMSTREAM_KAFKA__PROPERTIES__BATCH_SIZE)"
    )
    assert mechanism.startswith("kafka.security.mechanism: is missing, and the protocol needs it")
    assert ca.startswith("kafka.security.ca: the file it names does not exist")
    file.write_text(LEAST)  # events from a file: the variables are the daemon's, and mean nothing here
    assert load_training(file, environ).data.source == "files"


def test_a_report_shows_the_text_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"# mine\n{LEAST}")
    assert config_text(file) == f"# mine\n{LEAST}"


def test_words_that_stand_for_a_list_are_among_its_values() -> None:
    kinds = {option.path: option.kind for option in training_options()}
    assert kinds["training.class_weights"] == "`none`, `balanced`, list"


def test_a_caller_keeps_its_configuration_as_it_was(tmp_path: Path) -> None:
    """It may put one fault right and try again, or change one option after the other."""
    tree = yaml.safe_load(LEAST) | {"training": {"epochs": 0}}
    for _ in range(2):
        with pytest.raises(CannotServe, match=r"training\.epochs"):
            validate_training(tree, tmp_path)
    tree["training"]["epochs"] = 2
    assert validate_training(tree, tmp_path).training.epochs == 2
