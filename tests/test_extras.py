"""What works without the optional packages, and the message where one is needed.

The packages are blocked, so that this holds in an environment that has them too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lstmstream.errors import CannotServe
from lstmstream.extras import PACKAGES, require
from tests.models import random_model

OPTIONAL = ("torch", "onnx", "polars", "h5py", "safetensors", "optuna", "confluent_kafka", "tensorflow", "pandas")
CSV_NEEDS_POLARS = (
    "reading CSV or Parquet needs polars; in a clone of lstmstream, run: pip install '.[tables]', or"
    " convert the file to JSONL\n"
)


def lstmstream(*arguments: object, without: tuple[str, ...] = OPTIONAL) -> subprocess.CompletedProcess[str]:
    """The command in a process that cannot import the packages `without`."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
        "sys.argv[0] = 'lstmstream'\nfrom lstmstream.cli import main\nmain()"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_model(tmp_path, numbers=("amount",), outputs=1)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Labelled events of 25 keys, as JSON lines."""
    rng = np.random.default_rng(3)
    path = tmp_path / "events.jsonl"
    rows = [
        {"key": f"k{i % 25}", "time": 1_770_000_000 + i, "amount": float(rng.normal()), "fraud": int(i % 5 == 0)}
        for i in range(400)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluate_needs_no_optional_package(model: Path, events: Path) -> None:
    options = ("--key", "key", "--timestamp", "time", "--target", "fraud")
    done = lstmstream("evaluate", model, events, *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["events"], found["keys"], found["labels"]) == (400, 25, {"0": 320, "1": 80})
    assert 0 <= found["metrics"]["roc_auc"]["low"] <= found["metrics"]["roc_auc"]["high"] <= 1
    table = lstmstream("evaluate", model, events, *options)
    assert table.returncode == 0, table.stderr
    assert "average_precision" in table.stdout


def test_score_needs_no_optional_package(model: Path, events: Path) -> None:
    done = lstmstream("score", model, events, "--key", "key", "--timestamp", "time")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 400


@pytest.mark.parametrize("command", ["evaluate", "score"])
@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_table_without_polars_names_the_extra(tmp_path: Path, model: Path, command: str, name: str) -> None:
    data = tmp_path / name
    data.write_text("key,time,amount,fraud\na,1,1,0\n")
    options = ("--target", "fraud") if command == "evaluate" else ("--key", "key", "--timestamp", "time")
    done = lstmstream(command, model, data, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"lstmstream: {data}: {CSV_NEEDS_POLARS}"


@pytest.mark.parametrize(
    ("command", "extra", "packages"),
    [
        (("train", "x.yaml"), "train", "torch, onnx, optuna and polars"),
        (("tune", "x.yaml"), "train", "torch, onnx, optuna and polars"),
        (("import", "x.onnx", "--out", "m.onnx"), "import", "onnx, h5py and safetensors"),
    ],
)
def test_a_command_without_its_packages_names_the_extra(command: tuple[str, ...], extra: str, packages: str) -> None:
    done = lstmstream(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"lstmstream: `lstmstream {command[0]}` needs {packages};"
        f" in a clone of lstmstream, run: pip install '.[{extra}]'\n"
    )


def test_require_checks_the_packages_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    require("import", "reading x", "numpy")
    message = r"^reading x needs h5py; in a clone of lstmstream, run: pip install '\.\[import\]', or wait$"
    with pytest.raises(CannotServe, match=message):
        require("import", "reading x", "numpy", "h5py", otherwise="wait")


def test_the_packages_of_each_extra_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.split(r"[\[<>=]", one)[0] for one in requirements}
        for inner in re.findall(r"lstmstream\[([\w,]+)\]", " ".join(requirements)):
            found |= {name for extra in inner.split(",") for name in names(extras[extra])}
        return found

    for extra, packages in PACKAGES.items():
        assert set(packages) <= names(extras[extra])
    assert not {"polars", "onnx", "torch"} & names(project["dependencies"])
