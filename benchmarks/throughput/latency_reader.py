"""The reader of the latency benchmark, a process of its own: when each answer came, and when its event was sent.

    python -m benchmarks.throughput.latency_reader SERVERS TOPIC PARTITIONS EVERY FILE

Makes FILE.ready when it reads, and ends when there is a FILE.stop; then FILE has a list of [sent, seen] in seconds.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from benchmarks.throughput.topics import Topics

WAIT_S = 0.1
SENT_AT = re.compile(rb'"ts":\s*"(\d+\.\d{6})"')


def read_latencies(servers: str, topic: str, partitions: int, every: int, found_at: Path) -> None:
    """Look at each `every`-th record from now on."""
    topics = Topics(servers, partitions)
    consumer = topics.reader(topic, {}, topics.committed_ends(topic))
    samples: list[tuple[float, float]] = []
    stop, count = found_at.with_suffix(".stop"), 0
    found_at.with_suffix(".ready").touch()
    while not stop.exists():
        first = consumer.poll(WAIT_S)  # `consume` would wait out its timeout
        messages = [] if first is None else [first, *consumer.consume(500, 0)]
        now = time.time()
        for message in messages:
            count += 1
            if count % every == 0 and not message.error():
                sent_at = SENT_AT.search(message.value() or b"")
                if sent_at is not None:
                    samples.append((float(sent_at[1]), now))
    consumer.close()
    written = found_at.with_suffix(".new")
    written.write_text(json.dumps(samples))
    written.rename(found_at)


if __name__ == "__main__":
    read_latencies(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
