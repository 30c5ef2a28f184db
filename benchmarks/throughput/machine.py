"""What the figures hold for: the machine and the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.throughput.environments import PEERS
from lstmstream.dev.kafka_jars import KAFKA_VERSION


def describe_machine() -> dict[str, Any]:
    """Processor, cores, and the load that there was before."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": (names or [platform.machine()])[0],
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
    }


def describe_versions(daemon: str) -> dict[str, str]:
    """Of the daemon and its libraries, the broker, Java and the peers' packages."""
    found = {
        "lstmstream": daemon.removeprefix("lstmstream "),
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
    }
    found |= {"Python": platform.python_version(), "Kafka": KAFKA_VERSION}
    for package in ("kafka-python", "confluent-kafka", "onnxruntime", "numpy", "msgspec"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    lines = (PEERS / "quix_streams.txt").read_text().splitlines()
    found["quixstreams"] = next(line.partition("==")[2] for line in lines if line.startswith("quixstreams=="))
    found["Java"] = _first_line("java", "-version")
    return found


def _first_line(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return "not found"
    return (result.stdout + result.stderr).strip().split("\n")[0].replace('"', "")
