"""The JSON Schemas of `lstmstream config schema` accept the files that the program accepts, and few others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lstmstream.config import Config, options
from lstmstream.config.json_schema import document_schema
from lstmstream.config.stages import OF_STAGE
from lstmstream.train.schema import TrainConfig, training_options
from tests.test_cli import lstmstream

ROOT = Path(__file__).parent.parent
DAEMON = document_schema(Config, "daemon")
TRAINING = document_schema(TrainConfig, "training")
LEAST: dict[str, Any] = {
    "name": "x",
    "model": "m.onnx",
    "kafka": {"bootstrap_servers": "a:1"},
    "input": {"topic": "in"},
    "output": {"topic": "out"},
}
LEAST_TRAINING: dict[str, Any] = {"name": "x", "task": "forecast"}


def faults(schema: dict[str, Any], tree: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(tree)]


def merged(base: dict[str, Any], changes: str) -> dict[str, Any]:
    tree = dict(base)
    for name, value in yaml.safe_load(changes).items():
        both = isinstance(tree.get(name), dict) and isinstance(value, dict)
        tree[name] = {**tree[name], **value} if both else value
    return tree


def yaml_blocks() -> list[Any]:
    """Whole configurations in the documents, and the files of the repository."""
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in ROOT.glob("examples/*/*.yaml")}
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        blocks = re.findall(r"^```yaml\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        texts |= {f"{document.name}-{number}": text for number, text in enumerate(blocks)}
    trees = {name: yaml.safe_load(text) for name, text in sorted(texts.items())}
    return [pytest.param(tree, id=name) for name, tree in trees.items() if isinstance(tree, dict) and "name" in tree]


@pytest.mark.parametrize("tree", yaml_blocks())
def test_the_files_of_documents_and_examples(tree: dict[str, Any]) -> None:
    schema = TRAINING if "task" in tree else DAEMON
    assert faults(schema, json.loads(json.dumps(tree, default=str))) == []  # a date is text to an editor


def test_the_least_files_and_empty_options() -> None:
    assert faults(DAEMON, LEAST) == []
    assert faults(TRAINING, LEAST_TRAINING) == []
    empty = {name: None for name in DAEMON["else"]["properties"] if name not in LEAST}
    assert faults(DAEMON, {**empty, **LEAST}) == []


@pytest.mark.parametrize(
    "changes",
    [
        "state: {ttl: 1h30m, checkpoint_interval: 250ms}",
        "split: {gap: 0}",
        "input: {max_bytes: 64KiB}",
        "input: {max_bytes: 1000}",
        "input: {silent: {field: kind, equals: 3}}",
        "output: {include: 'a, b', threshold: 0.5}",
        "output: {include: [a, b], events: {topic: t, add: {risk: 'prediction[0]'}}}",
        "kafka: {bootstrap_servers: [a:1, b:1], properties: {session.timeout.ms: 10000, linger.ms: 0}}",
        "features: {numbers: 'amount, distance', categories: [country, {name: shop, buckets: 100}]}",
        "features: {numbers: [{name: amount, history: [1d, 7d]}, {name: size, history: 7d}]}",
        "training: {class_weights: balanced}",
        "training: {class_weights: [1, 2.5]}",
        "data: {from: kafka, start: 1000, end: '2026-01-31'}",
        "tune: {hidden: [16, 64]}",
    ],
)
def test_each_spelling_of_a_value(changes: str) -> None:
    training = changes.startswith(("split", "features", "training", "data", "tune"))
    schema, base = (TRAINING, LEAST_TRAINING) if training else (DAEMON, LEAST)
    assert faults(schema, merged(base, changes)) == []


@pytest.mark.parametrize(
    "changes",
    [
        "inptu: {}",
        "input: {late: maybe}",
        "state: {ttl: 30}",
        "state: {ttl: soon}",
        "http: {port: 70000}",
        "batch: 5",
        "batch: {max_events: 0}",
        "create_topics: 3",
        "input: {max_bytes: 10XB}",
        "kafka: {properties: {group.id: x}}",
        "kafka: {properties: {session.timeout.ms: 0}}",
        "kafka: null",
        "features: {numbers: [{scale: none}]}",
        "training: {class_weights: [0]}",
        "training: {epochs: 0}",
        "task: guess",
    ],
)
def test_what_is_wrong_is_shown(changes: str) -> None:
    training = changes.startswith(("features", "training", "task"))
    schema, base = (TRAINING, LEAST_TRAINING) if training else (DAEMON, LEAST)
    assert len(faults(schema, merged(base, changes))) == 1


def test_stages() -> None:
    stage = {name: LEAST[name] for name in ("name", "model", "input", "output")}
    chain = {"name": "c", "kafka": LEAST["kafka"], "stages": [stage, {**stage, "state": {"ttl": "1d"}}]}
    assert faults(DAEMON, chain) == []
    assert len(faults(DAEMON, {**chain, "model": "m"})) == 1
    assert len(faults(DAEMON, {**chain, "stages": [{**stage, "http": {}}]})) == 1
    assert len(faults(DAEMON, {**chain, "stages": [{"name": "a"}]})) == 3
    assert set(DAEMON["then"]["properties"]["stages"]["items"]["properties"]) == set(OF_STAGE)


def test_every_option_has_its_description_and_default() -> None:
    for schema, known in ((DAEMON["else"], options()), (TRAINING, training_options())):
        for option in known:
            at: Any = schema
            for key in option.keys:
                at = at.get("properties") or at["anyOf"][0]["items"]["anyOf"][1]["properties"]
                at = at[key]
            assert at["description"] == option.description, option.path
    http = DAEMON["else"]["properties"]["http"]["properties"]
    assert (http["port"]["default"], http["stall_after"]["default"]) == (9108, "30s")


@pytest.mark.parametrize(("options", "schema"), [((), DAEMON), (("--train",), TRAINING)])
def test_the_command(options: tuple[str, ...], schema: dict[str, Any]) -> None:
    done = lstmstream("config", "schema", *options)
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    jsonschema.Draft7Validator.check_schema(printed)
    assert {**printed, "title": ""} == {**json.loads(json.dumps(schema)), "title": ""}
