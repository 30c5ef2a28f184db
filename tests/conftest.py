"""What several test folders share: one real Kafka for the whole run, and names that no other test uses."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lstmstream.dev.broker import DevBroker

OWN_BROKER = "LSTMSTREAM_TEST_BOOTSTRAP"


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Bootstrap servers of a real Kafka: the one in $LSTMSTREAM_TEST_BOOTSTRAP, or one started for this run.

    Without Java or Maven this fails and says what to install: a test that was not run has not passed.
    """
    given = os.environ.get(OWN_BROKER)
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="lstmstream-test-") as folder:
        development = DevBroker(Path(folder) / "broker")
        servers = development.up(port=0)
        try:
            yield servers
        finally:
            development.down(wipe=True)


@pytest.fixture
def topic_prefix() -> str:
    """A name that no other test has used, for topics, groups and transactional ids."""
    return f"t-{uuid.uuid4().hex[:12]}"


# `make test` runs twice: everything that can do without torch in an environment that has none, which proves that
# serving needs none, and the rest where it is installed.
NEED_TORCH = ("train", "parity")
HAS_TORCH = importlib.util.find_spec("torch") is not None
HERE = Path(__file__).parent


def needs_torch(path: Path) -> bool:
    return path.is_relative_to(HERE) and path.relative_to(HERE).parts[:1] in {(folder,) for folder in NEED_TORCH}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if not HAS_TORCH and needs_torch(collection_path) else None


def pytest_report_header() -> str:
    return (
        "torch is installed"
        if HAS_TORCH
        else "torch is not installed: tests that need it are left to `-m torch` elsewhere"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.broker)  # so that `-m "not broker"` runs everywhere
        if needs_torch(item.path):
            item.add_marker(pytest.mark.torch)
    left_out = [item for item in items if item.get_closest_marker("torch") is not None and not HAS_TORCH]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
