"""The documents name nothing that is not there, and leave out nothing that they promise to list."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from prometheus_client import CollectorRegistry

from lstmstream.cli import app
from lstmstream.config import Config, options
from lstmstream.config.diagnostics import validate
from lstmstream.serve.metrics import Metrics
from lstmstream.train.schema import validate_training
from lstmstream.workers.metrics import MergedMetrics, worker_metrics

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_THE_READER = {
    ".venv/bin/activate",
    "stream.yaml",
    "events.jsonl",
    "bad.jsonl",
    "train.yaml",
    "train.tuned.yaml",
    "card-fraud.onnx",
    "model.onnx",
    "mine.onnx",
    "pairs.jsonl",
    "fraud.yaml",
    "enriched.jsonl",
    "machines.onnx",
    "scored.jsonl",
    "3/16",  # a shard
}  # files that somebody who follows the README makes
PACKAGE = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "lstmstream").rglob("*.py"))]


def code(text: str) -> list[str]:
    """What stands in backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def looks_like_a_path(text: str) -> bool:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]*)*", text):
        return False
    return "/" in text or text.endswith((".py", ".md", ".yaml", ".yml", ".toml", ".jsonl", ".onnx"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_it_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    words = {part for span in code(text) for part in span.split()}
    missing = {word for word in words if looks_like_a_path(word) and not (ROOT / word).exists()}
    assert missing <= OF_THE_READER
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link.partition("#")[0]).exists()] == []


def test_every_document_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f": {path.name}\n" not in navigation] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_method_it_names_exists(document: Path) -> None:
    named = {span for span in code(document.read_text(encoding="utf-8")) if re.fullmatch(r"[A-Z]\w+\.\w+", span)}
    missing = set()
    for name in named:
        class_name, method = name.split(".")
        bodies = [re.search(rf"^class {class_name}\b.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL) for text in PACKAGE]
        if not any(body and re.search(rf"\bdef {method}\(", body[0]) for body in bodies):
            missing.add(name)
    assert not missing


def test_the_configurations_of_the_guide_to_training_are_good(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    trees = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    names = [validate_training(tree, tmp_path).name for tree in trees if "task" in tree]
    assert names == ["card-fraud", "card-fraud"]


def test_the_configurations_of_the_guide_to_formats_are_good(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    least, *others = [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]
    least["kafka"]["schema_registry"]["password"] = "from a file"
    for tree in (least, *({**least, **other} for other in others)):
        validate(Config, tree, tmp_path)
    assert [other["input"]["unwrap"] for other in others] == ["cloudevents", "after"]


def test_the_configurations_of_the_way_from_csv_to_alerts_are_good(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "csv.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    training, daemon = map(yaml.safe_load, blocks)
    trained = validate_training(training, tmp_path)
    served = validate(Config, daemon, tmp_path)
    assert (trained.data.key, trained.data.timestamp) == (served.input.key, served.input.timestamp)
    assert [number.name for number in trained.features.numbers] == served.output.include


def test_every_option_is_in_the_reference() -> None:
    words = set(code(REFERENCE.read_text(encoding="utf-8")))
    assert {option.path.removeprefix("kafka.properties.") for option in options()} <= words


def commands_of(command: Any, name: str) -> list[str]:
    """The names of those that do something, as they are typed."""
    groups = getattr(command, "commands", None)
    if groups is None:
        return [name]
    return [found for word, one in groups.items() if not one.hidden for found in commands_of(one, f"{name} {word}")]


def test_every_command_is_in_a_document() -> None:
    names = commands_of(typer.main.get_command(app), "lstmstream")
    assert len(names) > 20
    text = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    assert [name for name in names if not re.search(re.escape(name) + r"(?![\w-])", text)] == []


def test_every_metric_is_in_the_reference() -> None:
    words = set(code(REFERENCE.read_text(encoding="utf-8")))
    families = [f for f in Metrics(CollectorRegistry()).registry.collect() if f.name.startswith("lstmstream_")]
    assert len(families) > 20
    assert {f"{f.name}_total" if f.type == "counter" else f.name for f in families} <= words


def test_every_metric_that_a_document_names_exists() -> None:
    families = [*Metrics(CollectorRegistry()).registry.collect(), *worker_metrics((), MergedMetrics())]
    names = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    for document in DOCUMENTS:
        named = {s for s in code(document.read_text(encoding="utf-8")) if re.fullmatch(r"lstmstream_\w+", s)}
        assert named <= names, document.name


def test_the_tables_of_the_reference_are_up_to_date() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert make_reference().render(text) == text, "run `python docs/make_reference.py`"


def make_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_line_of_the_semantics_that_is_cited_is_one_line() -> None:
    """Code and documents cite "docs/semantics.md, line 8"."""
    block = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8").split("```")[1]
    numbers = [int(number) for number in re.findall(r"^ ?(\d{1,2})  \S", block, flags=re.MULTILINE)]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    cited = {
        int(number)
        for text in [*PACKAGE, *(document.read_text(encoding="utf-8") for document in DOCUMENTS)]
        for number in re.findall(r"\b[Ll]ine (\d{1,2})\b", text)
        if "semantics" in text
    }
    assert cited <= set(numbers)
