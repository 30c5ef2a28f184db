"""What a valid configuration asks for and does not get: warnings at the start. Imports nothing that serves."""

from __future__ import annotations

import os

from lstmstream.config import Config

_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")  # of Docker, of Podman


def config_warnings(config: Config) -> list[str]:
    """One text each."""
    texts = (_unused_replay(config), unreachable_probes(config), unwritable_snapshots(config))
    return [text for text in texts if text is not None]


def _unused_replay(config: Config) -> str | None:
    if "replay" not in config.state.model_fields_set or config.on_model_change == "replay":
        return None
    return f"state.replay has no effect with on_model_change: {config.on_model_change}; set on_model_change: replay"


def unwritable_snapshots(config: Config) -> str | None:
    """What is wrong with `state.dir`, or with the nearest folder above it that is there."""
    if config.state.dir is None:
        return None
    folder = (config.folder / config.state.dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return f"state.dir: no snapshots can be written to {folder}: {there} is not a folder that this user may write to"


def unreachable_probes(config: Config) -> str | None:
    """What is wrong where a container's probes come from outside and only its own loopback is listened to."""
    in_container = "KUBERNETES_SERVICE_HOST" in os.environ or any(map(os.path.exists, _CONTAINER_MARKS))
    if not (config.http.loopback and in_container):
        return None
    return (
        f"http.host: {config.http.host} can be reached only from inside this container, not by probes or Prometheus;"
        " set http.host: 0.0.0.0"
    )
