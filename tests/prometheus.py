"""A Prometheus on this machine, with the shipped configuration and rules; and what the shipped files ask it for."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import yaml

from tests.programs import find_program

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "lstmstream.json"
# `lstmstream_events_total`, but not the middle of `job:lstmstream_events:rate5m`; then whole names of recorded series.
METRIC = re.compile(r"(?<![\w:.])lstmstream_\w+(?![\w:])")
RECORDED = re.compile(r"(?<![\w:])\w+:lstmstream_\w+:\w+")
HISTOGRAM_ENDS = ("_bucket", "_sum", "_count")
WAIT_S = 90.0


def find_prometheus(name: str = "prometheus") -> str:
    """The path of `prometheus` or `promtool`; skips the test on a machine that has neither."""
    return find_program(name, install="Debian, Ubuntu: apt-get install prometheus")


def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """The alert rules."""
    return [rule for rule in rules() if "alert" in rule]


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard that ask for something; rows do not."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(panel: dict[str, Any], **variables: str) -> list[str]:
    """What a panel asks for, as Grafana fills in its variables."""
    expressions = [str(target["expr"]) for target in panel["targets"]]
    defaults = {"job": "lstmstream", "instance": ".*", "topic": ".*", "__rate_interval": "20s"}
    for name, value in {**defaults, **variables}.items():
        expressions = [expression.replace(f"${name}", value) for expression in expressions]
    return expressions


class RunningPrometheus:
    """One that scrapes every second, and stops with the `with` block. Its targets can change meanwhile."""

    def __init__(self, folder: Path, *, rule_file: Path = RULES, interval: str = "1s") -> None:
        self._targets = folder / "targets.json"
        self.set_targets([])
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval}
        config["rule_files"] = [str(rule_file)]
        (job,) = config["scrape_configs"]
        del job["static_configs"]
        job["file_sd_configs"] = [{"files": [str(self._targets)], "refresh_interval": interval}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [find_prometheus(), f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={self.address}"]
        command += ["--enable-feature=exemplar-storage", "--log.level=warn"]
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)

    def __enter__(self) -> Self:
        self.wait(lambda: self._get("/-/ready") is not None, "ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def set_targets(self, ports: Iterable[int]) -> None:
        """Scrape these ports of this machine from now on; each is known after the next `interval`."""
        text = json.dumps([{"targets": [f"127.0.0.1:{port}" for port in ports]}])
        new = self._targets.with_suffix(".new")
        new.write_text(text)
        new.replace(self._targets)

    def api(self, path: str, **parameters: str) -> Any:
        """The data of its HTTP API. AssertionError with its message where it refuses the question."""
        body = self._get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(body or "null")
        assert answer is not None, "Prometheus does not answer"
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that it gives now: `metric` and `value` of each."""
        result: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return result

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {a["labels"]["alertname"] for a in self.api("alerts")["alerts"] if a["state"] == "firing"}

    def names(self) -> set[str]:
        """Every name of a series so far, scraped or recorded."""
        return set(self.api("label/__name__/values"))

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Until `condition`; an AssertionError if Prometheus ends or the time is up before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"not {what} within {timeout_s:g} s; {self._log.read_text()}"
            time.sleep(0.1)

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as response:
                body: bytes = response.read()
                return body
        except urllib.error.HTTPError as error:
            return error.read() if path.startswith("/api/") else None
        except OSError:
            return None
