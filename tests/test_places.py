"""Messages about a configuration file say where in it the fault stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstmstream.config import load_config, load_stages
from lstmstream.errors import CannotServe
from lstmstream.train.schema import load_training

DAEMON = """\
# the daemon of the payments
name: fraud
model: builtin:demo
kafka:
  bootstrap_servers: "localhost:9092"
  properties:
    session.timeout.ms: soon
    "password:secret": 1
input: {topic: transactions, late: maybe}

output:
  include: [amount, "a..b", c]
htpp:
  port: 1
batch:
  max_wait: 60s
"""
STAGES = """\
name: chain
kafka: {bootstrap_servers: "localhost:9092", client: other}
stages:
  - name: one
    model: builtin:demo
    input: {topic: a}
    output: {topik: b}
  - name: two
    model: builtin:demo
    input: {topic: c}
    output: {topic: d}
    http: {port: 1}
"""


def said(file: Path, text: str, environ: dict[str, str] | None = None) -> dict[str, str]:
    """The end of each message, by the path in front of it."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CannotServe) as caught:
        load_config(file, environ or {})
    ends = {}
    for problem in caught.value.problems:
        path, _, rest = problem.partition(": ")
        ends[path] = rest[rest.rfind("(") :] if rest.endswith(")") else rest
    return ends


def test_each_fault_has_the_place_of_its_key(tmp_path: Path) -> None:
    assert said(tmp_path / "c.yaml", DAEMON) == {
        "kafka.properties.session.timeout.ms": "(line 7, column 5)",
        "kafka.properties.password…": "(line 8, column 5)",
        "input.late": "(line 9, column 30)",
        "output.include.1": "(line 12, column 21)",
        "output.topic": "(line 11, column 1)",  # missing: the section where it belongs
        "htpp": "(line 13, column 1)",
        "batch.max_wait": "(line 16, column 3)",
    }


def test_what_a_variable_sets_and_what_is_nowhere_has_no_place(tmp_path: Path) -> None:
    text = 'model: builtin:demo\nkafka: {bootstrap_servers: "a:1"}\ninput: {topic: a, late: maybe}\n'
    ends = said(tmp_path / "c.yaml", text, {"LSTMSTREAM_INPUT__LATE": "never"})
    assert ends["input.late"] == "(from LSTMSTREAM_INPUT__LATE)"
    assert "(line" not in ends["name"] + ends["output.topic"]


def test_a_byte_order_mark_and_windows_line_ends_count_as_nothing(tmp_path: Path) -> None:
    text = "\ufeffname: x\r\n\r\ninput: {late: maybe}\r\n"
    assert said(tmp_path / "c.yaml", text)["input.late"] == "(line 3, column 9)"


def test_stages(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(STAGES)
    with pytest.raises(CannotServe) as caught:
        load_stages(file)
    places = [(problem.partition(":")[0], problem[problem.rindex("(line") :]) for problem in caught.value.problems]
    assert places == [
        ("kafka.client", "(line 2, column 46)"),
        ("stages.0.output.topic", "(line 7, column 5)"),
        ("stages.0.output.topik", "(line 7, column 14)"),
        ("stages.1.http", "(line 12, column 5)"),
    ]


def test_a_training(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("task: classify\ndata:\n  path: x.csv\n  kye: a\nfeatures:\n  numbers:\n  - {scale: none}\n")
    with pytest.raises(CannotServe) as caught:
        load_training(file, {})
    places = {problem.partition(":")[0]: problem.partition(" (line ")[2] for problem in caught.value.problems}
    assert places["data.kye"] == "4, column 3)"
    assert places["features.numbers.0.name"] == "7, column 5)"
