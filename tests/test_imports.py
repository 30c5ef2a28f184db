"""What a command loads: the daemon, `score` and `evaluate` no optional package, and no command another's packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lstmstream

BASE_INSTALL = [
    "lstmstream.serve.process",
    "lstmstream.serve.score",
    "lstmstream.transport.kafka",
    "lstmstream.transport.clients.choose",
    "lstmstream.transport.memory",
    "lstmstream.model",
    "lstmstream.config",
    "lstmstream.demo.run",
    "lstmstream.evaluation.command",
    "lstmstream.evaluation.baselines",
    "lstmstream.evaluation.comparison",
    "lstmstream.evaluation.thresholds",
    "lstmstream.history.topics",
    "lstmstream.history.split",
]


@pytest.mark.parametrize("module", BASE_INSTALL)
def test_the_base_install_loads_no_optional_package(module: str) -> None:
    probe = f"import sys, {module}; print(sorted({{'torch', 'onnx', 'polars', 'h5py'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout == "[]\n"


def test_the_command_alone_loads_no_large_package() -> None:
    large = {"confluent_kafka", "kafka", "numpy", "onnxruntime", "polars", "pydantic", "torch", "yaml"}
    probe = f"import sys, lstmstream.cli; print(sorted({large} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout == "[]\n"


def test_loading_the_runtime_starts_no_telemetry() -> None:
    probe = "import os, lstmstream.serve.step; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout == "1\n"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """At run time: what is imported for types only, or within a function, makes no circle."""
    package = Path(lstmstream.__file__).parent
    names = {
        ".".join(("lstmstream", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    graph = {name: imported_by(path, set(names)) - {name} for name, path in names.items()}
    assert sum(map(len, graph.values())) > 300, "nothing was read"
    left = dict(graph)
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"circles among {sorted(left)}"


def imported_by(path: Path, names: set[str]) -> set[str]:
    """Modules of the package that a file imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:  # not what stands in functions or under TYPE_CHECKING
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            of = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (of & names) or {node.module}
    return found & names
