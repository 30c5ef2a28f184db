"""Daemons of one group that are struck and started again, as a supervisor would."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from tests.broker.harness import RunningDaemon

SETTLE_S = 180.0  # for all that is left, once nothing strikes any more
SCRAPE_S = 1.0


class Worker:
    """One member of the group through all its lives. One thread at a time may strike it: see `busy`."""

    def __init__(self, number: int, config: Path, *, static: bool, program: str = "lstmstream") -> None:
        """`static`: with a `group.instance.id`, and so with one transactional id for all its lives.

        `program`: the module that is run in place of `lstmstream`.
        """
        self.number = number
        self.busy = False
        self.ends: list[str] = []  # lives that ended by themselves
        self._folder = config.parent
        self._config = own_config(config, number) if static else config
        self._program = program
        self._lives = 0
        self._counted = self._counted_before = 0.0  # `events_total` of this life, and of those before it
        self._scraped = 0.0
        self.daemon = self._start()

    def _start(self) -> RunningDaemon:
        self._lives += 1
        self._counted_before, self._counted = self._counted_before + self._counted, 0.0
        command = [sys.executable, "-m", self._program, "run", str(self._config)]
        return RunningDaemon(self._config, self._folder / f"worker-{self.number}-{self._lives}.log", command=command)

    def start_again(self) -> None:
        """A new life, as the last one is over."""
        self.daemon = self._start()

    def look(self) -> None:
        """Start it again if it has ended by itself, and note how it ended."""
        code = self.daemon.exit_code
        if code is not None and not self.busy:
            self.ends.append(f"worker {self.number} ended with code {code}: {last_error(self.daemon)}")
            self.start_again()
        elif not self.busy and time.monotonic() - self._scraped > SCRAPE_S:
            self.scrape()

    def use(self, model: Path) -> None:
        """This model from its next life on."""
        with_model(self._config, model, to=self._config)

    def scrape(self) -> None:
        """Ask /metrics how many events it has counted."""
        self._scraped = time.monotonic()
        self._counted = max(self._counted, self.daemon.count("events_total"))

    @property
    def counted(self) -> float:
        """Events of all its lives, as the last scrapes had them."""
        return self._counted_before + self._counted

    def kill9(self) -> None:
        self.daemon.kill9()
        self.start_again()

    def freeze(self, seconds: float) -> None:
        self.daemon.freeze()
        try:
            time.sleep(seconds)
        finally:
            self.daemon.thaw()

    def stop_and_start(self) -> int:
        """SIGTERM; the exit code."""
        daemon = self.daemon
        daemon.wait(daemon.hears_sigterm, "hearing SIGTERM")
        code = daemon.sigterm()
        self.start_again()
        return code


class Fleet:
    """The workers of one configuration."""

    def __init__(
        self,
        config: Path,
        workers: int,
        *,
        static: Callable[[int], bool] = lambda number: number % 2 == 0,
        program: str = "lstmstream",
    ) -> None:
        """`static`: whether the worker of this number is a static member; unless said otherwise, every second one."""
        self.workers = [Worker(number, config, static=static(number), program=program) for number in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.daemon.kill9()

    def idle(self) -> list[Worker]:
        """Those that nobody strikes now."""
        return [worker for worker in self.workers if not worker.busy]

    def look(self) -> None:
        """Start again whoever has ended."""
        for worker in self.workers:
            worker.look()

    def wait_ready(self) -> None:
        for worker in self.workers:
            worker.daemon.wait_ready()

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = SETTLE_S) -> None:
        """Until `condition`; whoever ends meanwhile is started again."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.look()
            words = "\n".join(worker.daemon.last_words(5) for worker in self.workers)
            assert time.monotonic() < deadline, f"not {what} within {timeout_s:g} s\n{words}"
            time.sleep(0.2)

    def stop(self) -> list[str]:
        """SIGTERM to all, one after the other; those whose exit code is not 0."""
        for worker in self.workers:
            worker.scrape()
        codes = {worker.number: worker.daemon.sigterm() for worker in self.workers}
        return [f"worker {number} stopped with code {code} at the end" for number, code in codes.items() if code != 0]

    def counted(self) -> float:
        """Events of all lives of all workers: what was committed, and so never more than there are."""
        return sum(worker.counted for worker in self.workers)

    def ends(self) -> list[str]:
        """Every life that ended by itself."""
        return [end for worker in self.workers for end in worker.ends]


def last_error(daemon: RunningDaemon) -> str:
    """The last line of its log at a level that says why it ended."""
    errors = [line for line in daemon.log_lines if line.get("level", "").upper() in {"ERROR", "CRITICAL"}]
    return str(errors[-1].get("message")) if errors else daemon.last_words(3)


def with_model(config: Path, model: Path, *, to: Path) -> Path:
    """The same configuration with this model, written at once, as a daemon may read it at any time."""
    settings: dict[str, Any] = yaml.safe_load(config.read_text())
    written = to.with_suffix(".new")
    written.write_text(yaml.safe_dump({**settings, "model": str(model)}))
    return written.replace(to)


def own_config(config: Path, number: int) -> Path:
    """The same configuration, of a static member."""
    settings: dict[str, Any] = yaml.safe_load(config.read_text())
    properties: Mapping[str, Any] = settings["kafka"].get("properties", {})
    settings["kafka"]["properties"] = {**properties, "group.instance.id": f"worker-{number}"}
    path = config.with_name(f"worker-{number}.yaml")
    path.write_text(yaml.safe_dump(settings))
    return path
