"""`stages:` in one file: which daemons they are, what is refused, and that `score` runs them one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from lstmstream.config import load_config, load_stages
from lstmstream.errors import CannotServe
from lstmstream.serve.score import score_file
from lstmstream.testing import TestDriver
from tests.models import random_model

SILENT = {"field": "kind", "equals": "report"}


def chain(**changes: Any) -> dict[str, Any]:
    """Two stages: terminals, then customers, which see what the first says of the terminal."""
    first = {
        "name": "terminal",
        "model": "terminal.onnx",
        "input": {"topic": "transactions", "key": "terminal", "timestamp": "time", "silent": SILENT},
        "output": {
            "topic": "terminals",
            "events": {"topic": "by-customer", "key": "customer", "add": {"risk": "prediction[0]"}},
        },
        "state": {"ttl": "30d"},
    }
    second = {
        "name": "customer",
        "model": "customer.onnx",
        "input": {"topic": "by-customer", "timestamp": "time"},
        "output": {"topic": "predictions"},
    }
    return {
        "name": "fraud",
        "kafka": {"bootstrap_servers": "127.0.0.1:9092", "properties": {"group.instance.id": "pod-0"}},
        "http": {"port": 0},
        "state": {"checkpoint_interval": "1s"},
        "stages": [second, first],
        **changes,
    }


def written(folder: Path, tree: dict[str, Any]) -> Path:
    file = folder / "chain.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return file


def models(folder: Path) -> None:
    random_model(folder, file="terminal.onnx", name="terminal", numbers=["amount", "fraud"], outputs=1)
    random_model(folder, file="customer.onnx", name="customer", numbers=["amount", "risk"], seed=1)


def history(count: int = 60) -> list[dict[str, Any]]:
    """Purchases, and reports of what became of them."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        row = {"terminal": f"t{i % 5}", "customer": f"c{i % 7}", "time": 1_767_225_600 + 60 * i, "note": f"n{i}"}
        if i % 10 == 9:
            rows.append({**row, "kind": "report", "fraud": int(i % 3 == 0)})
        else:
            rows.append({**row, "amount": i % 11})
    return rows


def test_each_stage_is_a_daemon_with_the_options_above_it(tmp_path: Path) -> None:
    first, second = load_stages(written(tmp_path, chain()), {})
    assert (first.name, second.name) == ("terminal", "customer"), "a stage comes after the one that feeds it"
    assert (first.config.name, second.config.name) == ("fraud.terminal", "fraud.customer")
    assert (first.config.state.topic, second.config.state.topic) == ("fraud.terminal.state", "fraud.customer.state")
    assert second.config.dead_letter.topic == "fraud.customer.dead-letter"
    assert (first.config.state.ttl, second.config.state.ttl) == (30 * 86_400, None)
    assert first.config.state.checkpoint_interval == second.config.state.checkpoint_interval == 1
    assert second.config.kafka.properties["group.instance.id"] == "pod-0-customer"
    assert load_config(tmp_path / "chain.yaml", {}, stage="customer") == second.config


def test_the_environment_overrides_what_they_share(tmp_path: Path) -> None:
    file = written(tmp_path, chain())
    first, second = load_stages(file, {"LSTMSTREAM_KAFKA__BOOTSTRAP_SERVERS": "b:1"})
    assert first.config.kafka.bootstrap_servers == second.config.kafka.bootstrap_servers == ["b:1"]
    with pytest.raises(CannotServe, match="LSTMSTREAM_INPUT__TOPIC: does not name an option"):
        load_stages(file, {"LSTMSTREAM_INPUT__TOPIC": "x"})


def _stages(*changes: dict[str, Any]) -> dict[str, Any]:
    tree = chain()
    for stage, change in zip(tree["stages"], changes, strict=False):
        stage.update(change)
    return tree


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        (chain(stages=[]), "stages: must be a list of stages"),
        (chain(model="m.onnx"), "model: belongs to a stage; move it into stages"),
        (_stages({"name": "terminal"}), "stages.1.name: is the name of stages.0 too"),
        (_stages({"name": None}), "stages.0.name: is not a valid name"),
        (_stages({"http": {"port": 1}}), "stages.0.http: is not an option of a stage"),
        (_stages({"input": {}}), "stages.0.input.topic: is missing; set it"),
        (_stages({"batch": {"max_events": 0}}), "stages.0.batch.max_events: must be"),
        (chain(batch={"max_events": 0}), "batch.max_events: must be"),
        (_stages({"state": {"topic": "s"}}, {"state": {"topic": "s"}}), "stages.1.state.topic: is the topic of"),
        (
            _stages({"output": {"topic": "p", "events": {"topic": "transactions"}}}),
            "stages: customer, terminal read what they write, in a circle",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_path(tmp_path: Path, tree: dict[str, Any], problem: str) -> None:
    with pytest.raises(CannotServe) as refused:
        load_stages(written(tmp_path, tree), {})
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(problem)


def test_a_stage_has_to_be_chosen_where_one_is_meant(tmp_path: Path) -> None:
    file = written(tmp_path, chain())
    for stage in (None, "shop"):
        with pytest.raises(CannotServe, match="has the stages terminal, customer; choose one of them with --stage"):
            load_config(file, {}, stage=stage)
    del (tree := chain())["stages"]
    with pytest.raises(CannotServe, match="has no stages; leave the option out"):
        load_config(written(tmp_path, tree), {}, stage="customer")


def test_score_gives_the_bits_of_the_stages_one_after_the_other(tmp_path: Path) -> None:
    models(tmp_path)
    file, rows = written(tmp_path, chain()), history()
    data, out, events = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "events.jsonl"
    data.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert (
        score_file(str(file), str(data), out=str(out), key=None, timestamp=None, dead_letters=None, events=events) == 0
    )
    scored = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    first, second = (stage.config for stage in load_stages(file, {}))
    with TestDriver(first) as driver:
        driver.pipe_all(rows)
        enriched = driver._broker.topics["by-customer"].logs[0]
        between = [(record.key, record.value) for record in enriched]
    assert events.read_bytes().splitlines() == [value for _, value in between]
    with TestDriver(second) as driver:
        for key, value in between:
            driver.pipe(value, key=key)
        streamed = [one.value for one in driver.read_predictions()]
    assert len(scored) == len(streamed) == sum("kind" not in row for row in rows)
    assert {one["key"] for one in scored} == {f"c{i}" for i in range(7)}
    for one, other in zip(scored, streamed, strict=True):
        assert {**one, "source": 0} == {**other, "source": 0}
        assert "kind" not in rows[one["source"]["row"]]


def test_score_takes_one_stage_by_its_name(tmp_path: Path) -> None:
    models(tmp_path)
    file, data, out = written(tmp_path, chain()), tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    data.write_bytes(b"\n".join(map(orjson.dumps, history())))
    assert score_file(str(file), str(data), out=str(out), key=None, timestamp=None, dead_letters=None,
                      stage="terminal") == 0  # fmt: skip
    assert {orjson.loads(line)["key"] for line in out.read_bytes().splitlines()} == {f"t{i}" for i in range(5)}


def test_stages_that_are_not_in_one_line_are_not_scored(tmp_path: Path) -> None:
    models(tmp_path)
    tree = _stages({"input": {"topic": "elsewhere", "key": "customer", "timestamp": "time"}})
    file = written(tmp_path, tree)
    with pytest.raises(CannotServe, match=r"does not read the output\.events of"):
        score_file(str(file), "x", out="-", key=None, timestamp=None, dead_letters=None)
