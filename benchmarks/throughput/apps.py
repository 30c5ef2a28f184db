"""What is compared: the daemon in its variants, and the peers; and how each is started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.throughput.environments import PEERS, kafka_streams_jars, python_environment
from benchmarks.throughput.models import Models

REFERENCE = "reference"
LSTMSTREAM = (sys.executable, "-m", "lstmstream")
ROOT = Path(__file__).resolve().parents[2]
BATCH = 10_000  # as the reference loop has it; the daemon's default is 4,096
EXACTLY_ONCE = "exactly once"
AT_LEAST_ONCE = "at least once"


@dataclass(frozen=True, slots=True)
class Job:
    """What an app is to do: read `input`, write `output`. Its files go into `folder`."""

    servers: str
    input: str
    output: str
    group: str
    partitions: int
    folder: Path
    models: Models


@dataclass(frozen=True, slots=True)
class App:
    """One line of the table. `command` makes its environment if need be, and may raise BuildFailed."""

    name: str  # for --apps
    title: str
    guarantee: str
    state: str
    command: Callable[[Job], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_daemon: bool = False
    warm_up_factor: float = 1.0
    optional: bool = False  # run only where it is asked for

    def variables(self, job: Job) -> dict[str, str]:
        """The environment variables that it gets beside those of the benchmark."""
        return {
            "BOOTSTRAP": job.servers,
            "INPUT": job.input,
            "OUTPUT": job.output,
            "GROUP": job.group,
            "MODEL": str(job.models.plain),
            "STATE_DIR": str(job.folder / "state"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **self.environment,
        }


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this version of the daemon has."""

    version: str
    workers: bool
    compiled_codec: bool


def find_abilities() -> Abilities:
    """Ask the daemon's command line."""
    version, usage = _output("--version"), _output("run", "--help")
    # An option that is named but does nothing yet says so.
    workers = "--workers" in usage and "not implemented" not in " ".join(usage.lower().split())
    codec = "compiled" in version.lower() and "codec" in version.lower()
    return Abilities(" ".join(version.split()), workers, codec)


def make_apps(abilities: Abilities, cache: Path) -> list[App]:
    """All apps, the daemon's first."""
    apps = [
        _daemon(guarantee, client)
        for guarantee in (EXACTLY_ONCE, AT_LEAST_ONCE)
        for client in ("confluent", "kafka-python")
    ]
    if abilities.workers:
        apps += [_daemon(EXACTLY_ONCE, client, workers=2) for client in ("confluent", "kafka-python")]
    if abilities.compiled_codec:
        apps += [_daemon(EXACTLY_ONCE, client, pure=True) for client in ("confluent", "kafka-python")]
    apps += [_daemon(EXACTLY_ONCE, client, checkpoint_interval="1s") for client in ("confluent", "kafka-python")]
    return [*apps, *_peers(cache)]


def choose_apps(apps: Sequence[App], wanted: str | None) -> list[App]:
    """Those in the comma-separated list; a word that is no name stands for all that begin with it. Or ValueError."""
    if wanted is None:
        return [app for app in apps if not app.optional]
    names = {app.name for app in apps}
    chosen: set[str] = set()
    for word in [word.strip() for word in wanted.split(",") if word.strip()]:
        found = {word} & names or {name for name in names if name.startswith(word)}
        if not found:
            raise ValueError(f"no app is called {word}; there are: {', '.join(app.name for app in apps)}")
        chosen |= found
    return [app for app in apps if app.name in chosen]


def _daemon(
    guarantee: str, client: str, *, workers: int = 1, pure: bool = False, checkpoint_interval: str | None = None
) -> App:
    """`checkpoint_interval`: another than the default of 30 s, after which a run of the benchmark is mostly over."""
    suffix = (f"-{workers}-workers" if workers > 1 else "") + ("-pure" if pure else "")
    extra = (f", {workers} workers" if workers > 1 else "") + (", codec off" if pure else "")
    state: dict[str, str] = {}
    if checkpoint_interval is not None:
        state["checkpoint_interval"] = checkpoint_interval
        suffix += "-checkpoints"
        extra += f", states every {checkpoint_interval}"

    def command(job: Job) -> list[str]:
        config = {
            "name": job.group,
            "model": str(job.models.product),
            "delivery": guarantee.replace(" ", "_"),
            "kafka": {"bootstrap_servers": job.servers, "client": client},
            "input": {"topic": job.input},
            "output": {"topic": job.output, "include": ["ts"]},
            "batch": {"max_events": BATCH},
            "state": state,
            "http": {"port": 0},
        }
        path = job.folder / "daemon.yaml"
        path.write_text(yaml.safe_dump(config))
        return [*LSTMSTREAM, "run", str(path), *(["--workers", str(workers)] if workers > 1 else [])]

    short = {EXACTLY_ONCE: "exactly-once", AT_LEAST_ONCE: "at-least-once"}[guarantee]
    return App(
        name=f"lstmstream-{short}-{client}{suffix}",
        title=f"**lstmstream**, {client}{extra}",
        guarantee=guarantee,
        state="memory + state topic",
        command=command,
        environment={"LSTMSTREAM_CODEC": "pure"} if pure else {},
        is_daemon=True,
        optional=checkpoint_interval is not None,
    )


def _peers(cache: Path) -> list[App]:
    def script(name: str) -> Callable[[Job], list[str]]:
        def command(_: Job) -> list[str]:
            return [str(python_environment(PEERS / f"{name}.txt", cache)), str(PEERS / f"{name}.py")]

        return command

    def kafka_streams(_: Job) -> list[str]:
        jars = kafka_streams_jars(PEERS / "kafka-streams", cache)
        return ["java", "-Xmx2g", "-cp", f"{jars}/kafka-streams-peer.jar{os.pathsep}{jars}/lib/*", "peers.ScoreEvents"]

    rocksdb = "RocksDB + changelog topic"
    return [
        # Java was seen to get four times as fast while it compiles what is hot.
        App("kafka-streams", "Kafka Streams", EXACTLY_ONCE, rocksdb, kafka_streams, warm_up_factor=4),
        App("quix-streams", "Quix Streams", EXACTLY_ONCE, rocksdb, script("quix_streams")),
        App("loop-confluent", "plain loop, confluent", "none", "memory", script("confluent_loop")),
        App("loop-kafka-python", "plain loop, kafka-python", "none", "memory", script("kafka_python_loop")),
        App(REFERENCE, "reference loop", "none", "memory", script("reference_loop")),
    ]


def _output(*arguments: str) -> str:
    result = subprocess.run(
        [*LSTMSTREAM, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return result.stdout
