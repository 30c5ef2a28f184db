"""Makes what each peer needs, once: a virtual environment, or the jars of Kafka Streams.

They are kept in a folder by the content of what they are made from, so that a change makes a new one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PEERS = Path(__file__).resolve().parents[1] / "peers"
BUILD_S = 300.0


class BuildFailed(Exception):
    """A peer's environment cannot be made; the message says why, in one line."""


def python_environment(requirements: Path, cache: Path) -> Path:
    """The Python of a virtual environment with these requirements. Raises BuildFailed."""
    folder = cache / _folder_name(requirements.stem, requirements.read_bytes() + sys.version.encode())
    python = folder / "bin" / "python"
    if not _is_complete(folder):
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
        _complete(folder)
    return python


def kafka_streams_jars(source: Path, cache: Path) -> Path:
    """The folder with the jar made from `source`, and with those that it needs in lib. Raises BuildFailed."""
    files = sorted(path for path in source.rglob("*") if path.suffix in {".java", ".xml"})
    folder = cache / _folder_name("kafka-streams", b"".join(path.read_bytes() for path in files))
    if not _is_complete(folder):
        maven = shutil.which("mvn")
        if maven is None or shutil.which("java") is None:
            raise BuildFailed("Java and Maven are needed")
        shutil.rmtree(folder, ignore_errors=True)
        options = ["-q", "-B", "-Dstyle.color=never", f"-Dtarget={folder}", "-f", str(source / "pom.xml")]
        _run([maven, *options, "package"])
        _complete(folder)
    return folder


def _folder_name(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"


def _is_complete(folder: Path) -> bool:
    return (folder / ".complete").exists()


def _complete(folder: Path) -> None:
    (folder / ".complete").touch()


def _run(command: Sequence[str]) -> None:
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{Path(command[0]).name} did not end within {BUILD_S:g} s") from None
    if result.returncode != 0:
        lines = [line.strip() for line in (result.stdout + result.stderr).splitlines()]
        errors = [line for line in lines if line.upper().startswith(("ERROR", "[ERROR]"))] or lines or ["no output"]
        raise BuildFailed(f"{Path(command[0]).name}: {errors[0][:300]}")
