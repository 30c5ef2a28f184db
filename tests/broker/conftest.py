"""Every test against a real broker runs on both clients."""

from __future__ import annotations

import pytest

from tests.broker import harness


@pytest.fixture(params=["kafka-python", "confluent"], autouse=True)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The client library that daemons started by this test use."""
    monkeypatch.setattr(harness, "CLIENT", request.param)
    return str(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `only_client` says: a claim about one of the clients is made once."""

    def holds(item: pytest.Item) -> bool:
        marker = item.get_closest_marker("only_client")
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        return marker is None or parameters.get("client") == marker.args[0]

    other = [item for item in items if not holds(item)]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if holds(item)]
