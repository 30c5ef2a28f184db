from __future__ import annotations

from pathlib import Path

import pytest

from lstmstream.states import stored
from tests.models import random_model
from tests.serve.memory_world import INPUT
from tests.states.world import Opened, append
from tests.verify.world import VerifyWorld


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VerifyWorld:
    made = VerifyWorld(random_model(tmp_path, hidden=2))
    append(made, 0)
    made.serve()
    append(made, 1)
    made.serve()
    monkeypatch.setattr(stored, "load_config", lambda _path, stage=None: made.config())
    monkeypatch.setattr(stored, "open_kafka_admin", lambda _config: Opened(made.broker, INPUT))
    return made
