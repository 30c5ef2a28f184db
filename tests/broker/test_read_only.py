"""The daemon on a machine that it cannot write to: no file, no temporary folder, no home."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, produce, write_config
from tests.models import random_model
from tests.programs import find_program

pytestmark = pytest.mark.broker

EVENTS = 40
# All mounts but the kernel's own become read-only, for this process alone; $1 must not be writable then.
READ_ONLY = """
set -e
for at in $(cut -d ' ' -f 2 /proc/self/mounts); do
    case $at in /proc*|/sys*|/dev|/dev/pts|/dev/mqueue|/dev/hugepages) ;; *) mount -o remount,ro,bind "$at" ;; esac
done
for folder in "$1" "${TMPDIR:-/tmp}" /var/tmp /dev/shm; do
    if touch "$folder/x" 2> /dev/null; then echo "$folder is writable" >&2; exit 9; fi
done
shift
exec "$@"
"""


def test_it_serves_without_a_place_to_write(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    unshare = find_program("unshare", install="util-linux")
    create_topics(broker, [f"{topic_prefix}.in", f"{topic_prefix}.out"], partitions=1)
    produce(
        broker, f"{topic_prefix}.in", [(b"k", b'{"amount": 1}', None, 0)] * (EVENTS - 1) + [(b"k", b"bad", None, 0)]
    )
    config = write_config(
        tmp_path / "c.yaml", name=topic_prefix, model=random_model(tmp_path, hidden=4), servers=broker
    )
    log = tmp_path / "log"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path != log}
    command = [unshare, "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(tmp_path)]
    command += [sys.executable, "-m", "lstmstream", "run", str(config)]
    with RunningDaemon(config, log, command=command) as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: committed_offsets(broker, topic_prefix).get(0) == EVENTS, "past all events")
        assert daemon.sigterm() == 0, daemon.last_words()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path != log} == before
    assert [line for line in daemon.log_lines if line["level"] == "error"] == []
