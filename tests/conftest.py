"""What several test folders share: one real Kafka for the whole run, and names that no other test uses."""

from __future__ import annotations

import importlib.util
import os
import runpy
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from lstmstream import codec
from lstmstream.dev.broker import DevBroker
from tests.broker.harness import wait_for_coordinators

OWN_BROKER = "LSTMSTREAM_TEST_BOOTSTRAP"
HERE = Path(__file__).parent
# A test waits for what it tests, never for a time: a busy machine is no failure.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
settings.register_profile("no-shrinking", phases=[Phase.explicit, Phase.generate])  # for tests/mutations.py


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
            wait_for_coordinators(servers)
            yield servers
        finally:
            development.down(wipe=True)


@pytest.fixture
def topic_prefix() -> str:
    """A name that no other test has used, for topics, groups and transactional ids."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def c_compiler() -> None:
    """Skips on a machine that cannot compile the codec: it has no C compiler, or no headers of Python."""
    find_tools = runpy.run_path(str(HERE.parent / "native" / "build.py"))["find_tools"]
    try:
        find_tools()
    except RuntimeError as lack:
        pytest.skip(str(lack))


@pytest.fixture(scope="session")
def compiled_codec(c_compiler: None) -> None:
    """A machine that can compile the codec must have it: what the compiler refused is a failure, not a skip."""
    assert codec._module is not None, "the codec is not compiled, though this machine can: run make codec"


@pytest.fixture(scope="module", params=["pure", "compiled"])
def either_codec(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs the tests of a file twice: without the compiled codec, and with it. All others have it where it is there."""
    if request.param == "compiled":
        request.getfixturevalue("compiled_codec")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(codec.VARIABLE, request.param)
        yield


# `make test` runs most tests in the environment of the base install, which has neither torch nor polars and so shows
# that the daemon, `score` and `evaluate` need neither; then what is left, in the environment that has everything.
NEED_TORCH = ("train", "importer")  # folders
NEED_POLARS = "*_tables.py"  # tests of CSV and Parquet
HAS = {name: importlib.util.find_spec(name) is not None for name in ("torch", "polars")}


def needs(path: Path) -> list[str]:
    """The packages without which the test file at `path` cannot be imported."""
    inside = path.relative_to(HERE).parts if path.is_relative_to(HERE) else ()
    needed = ["torch"] if inside[:1] and inside[0] in NEED_TORCH else []
    return [*needed, "polars"] if path.match(NEED_POLARS) else needed


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if not all(HAS[name] for name in needs(collection_path)) else None


def pytest_report_header() -> list[str]:
    packages = [f"{name} is {'installed' if found else 'not installed'}" for name, found in HAS.items()]
    return [*packages, f"codec: {codec.describe()}"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A worker of pytest-xdist cannot send a lone surrogate, which tests of hostile text have logged."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()) or item.path.is_relative_to(HERE / "faults"):
            item.add_marker(pytest.mark.broker)  # so that `-m "not broker"` runs everywhere
        needed = needs(item.path)
        if "torch" in needed:
            item.add_marker(pytest.mark.torch)
        if "polars" in needed:
            item.add_marker(pytest.mark.tables)
    left_out = [item for item in items if item.get_closest_marker("torch") is not None and not HAS["torch"]]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
