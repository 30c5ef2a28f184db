"""Where in its life the daemon is, and which moves are allowed."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Where in its life the daemon is."""

    STARTING = "starting"
    JOINING = "joining"
    RESTORING = "restoring"
    RUNNING = "running"
    RECOVERING = "recovering"
    DRAINING = "draining"
    STOPPED = "stopped"


_END = {Phase.DRAINING, Phase.STOPPED}
ALLOWED = {
    Phase.STARTING: {Phase.JOINING, Phase.STOPPED},
    Phase.JOINING: {Phase.RESTORING, Phase.RUNNING, Phase.RECOVERING, *_END},
    Phase.RESTORING: {Phase.RUNNING, Phase.RECOVERING, *_END},
    Phase.RUNNING: {Phase.RESTORING, Phase.RECOVERING, *_END},  # a rebalance: restore again
    Phase.RECOVERING: {Phase.JOINING, Phase.RESTORING, Phase.RUNNING, *_END},
    Phase.DRAINING: {Phase.STOPPED},
    Phase.STOPPED: set(),
}
