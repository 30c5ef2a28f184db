"""What is shipped beside the code: image, compose file and locks, read as text, since no Docker may be at hand."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from lstmstream.config import load_config
from tests.dockerfile import Step, instructions, stage, stages
from tests.programs import find_program

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PINNED = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
COMPILER = "RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev"
STREAM = ROOT / "deploy" / "compose" / "stream.yaml"


def last_stage() -> list[Step]:
    """What makes the image that is built by default, without what is built for it elsewhere."""
    return stage("daemon")


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"][name]
    return found


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return int(match[1])


# -- the image ---------------------------------------------------------------------------------------------------------


IMAGES = ("daemon", "cuda", "train")


def test_every_base_image_is_pinned_by_digest() -> None:
    images = [rest.partition("=")[2] for name, rest in instructions() if (name, rest[:7]) == ("ARG", "PYTHON=")]
    images += [entry["image"] for entry in compose()["services"].values() if "build" not in entry]
    assert len(images) == 5
    for image in images:
        assert PINNED.fullmatch(image), image
    sources = {rest.split()[0] for name, rest in instructions() if name == "FROM"}
    assert sources <= {"${PYTHON}", *stages()}, "all images are made from the pinned one"


def test_the_daemon_is_what_is_built_by_default() -> None:
    assert list(stages())[-1] == "daemon"


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_runs_as_a_number_that_is_not_root(image: str) -> None:
    users = [rest for name, rest in stage(image) if name == "USER"]
    assert len(users) == 1
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[0])


@pytest.mark.parametrize(("image", "lock"), [("daemon", "base"), ("cuda", "cuda"), ("train", "train")])
def test_the_image_holds_no_compiler_no_secret_and_nothing_unlocked(image: str, lock: str) -> None:
    assert not {"RUN", "ADD"} & {name for name, _ in stage(image)}, "all that is installed comes from other stages"
    (copied,) = [rest.split() for name, rest in stage(image) if name == "COPY"]
    assert copied == [f"--from=build-{lock}", "/opt/lstmstream", "/opt/lstmstream"]
    builder = "\n".join(rest for name, rest in stage(f"build-{lock}") if name == "RUN")
    assert f"-r requirements/{lock}.txt" in builder
    assert "LSTMSTREAM_CODEC=compiled /opt/lstmstream/bin/lstmstream --version" in builder, "with the compiled codec"


def test_nothing_is_installed_but_by_hash_and_nothing_but_the_codec_is_compiled() -> None:
    everything = "\n".join(f"{name} {rest}" for name, rest in instructions())
    assert everything.count(COMPILER) == 1, "the codec is compiled in a stage of its own"
    assert len(re.findall(r"native/build\.py --required --out codec", everything)) == 1
    everything = everything.replace(COMPILER, "")
    assert not re.search(r"apt|gcc|build-essential|password|secret|token", everything, re.IGNORECASE)
    installs = re.findall(r"\binstall\b[^&\n]*", everything)
    assert len(installs) == 7
    for install in installs:
        assert "--require-hashes --only-binary :all:" in install or "--no-deps --no-index" in install, install


def test_the_image_is_alive_while_the_daemon_is() -> None:
    steps = dict(last_stage())
    assert json.loads(steps["ENTRYPOINT"]) == ["lstmstream"]
    assert json.loads(steps["CMD"]) == ["run", "/etc/lstmstream/stream.yaml"]
    command = json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])
    assert command[0] == "python", "a slim image has no curl"
    port = load_config(STREAM, {}).http.port
    assert f"http://127.0.0.1:{port}/livez" in command[2]
    compile(command[2], "HEALTHCHECK", "exec")


def test_the_builder_gets_what_it_copies_and_no_more() -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in patterns if not line.startswith("#")) == "*"
    sent = {line[1:] for line in patterns if line.startswith("!")}
    copied = set()
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            copied |= {source.split("/")[0] for source in rest.split()[:-1]}
    assert copied == sent
    for source in copied:
        assert (ROOT / source).exists(), source


def test_the_image_for_gpus_has_one_runtime() -> None:
    names = {requirement.partition("==")[0] for requirement in requirements(ROOT / "requirements" / "cuda.txt")}
    assert "onnxruntime-gpu" in names
    assert "onnxruntime" not in names


# -- compose -----------------------------------------------------------------------------------------------------------


def test_compose_has_the_services_people_expect() -> None:
    assert {"kafka", "topics", "lstmstream", "events", "prometheus", "grafana"} == set(compose()["services"])
    monitoring = {name for name, here in compose()["services"].items() if here.get("profiles") == ["monitoring"]}
    assert monitoring == {"prometheus", "grafana"}, "all others start without a profile"


def test_the_daemon_in_compose_is_locked_down_and_has_time_to_hand_over() -> None:
    daemon = service("lstmstream")
    assert daemon["read_only"] is True
    assert daemon["cap_drop"] == ["ALL"]
    assert daemon["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", daemon["user"])
    assert daemon["user"] == dict(last_stage())["USER"]
    assert seconds(daemon["stop_grace_period"]) > load_config(STREAM, {}).shutdown_timeout
    assert daemon["volumes"] == ["./deploy/compose/stream.yaml:/etc/lstmstream/stream.yaml:ro"]


@pytest.mark.parametrize("name", ["kafka", "topics", "lstmstream", "events", "prometheus", "grafana"])
def test_no_service_gains_rights_or_is_seen_from_outside(name: str) -> None:
    here = service(name)
    assert here["cap_drop"] == ["ALL"]
    assert here["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in here
    assert "network_mode" not in here
    for port in here.get("ports", []):
        assert port.startswith("127.0.0.1:"), port


def test_services_wait_for_what_they_need() -> None:
    assert service("topics")["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert service("lstmstream")["depends_on"] == {
        "kafka": {"condition": "service_healthy"},
        "topics": {"condition": "service_completed_successfully"},
    }
    for name, here in compose()["services"].items():
        for needed, how in here.get("depends_on", {}).items():
            has_check = "healthcheck" in service(needed) or "build" in service(needed)  # the image brings its own
            assert has_check or how["condition"] != "service_healthy", (name, needed)


def test_kafka_is_reached_from_containers_and_from_this_machine() -> None:
    environment = service("kafka")["environment"]
    addresses = dict(entry.split("://") for entry in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert addresses == {"INTERNAL": "kafka:29092", "HOST": "localhost:9092"}
    listening = dict(entry.split("://") for entry in environment["KAFKA_LISTENERS"].split(","))
    for name, address in addresses.items():
        assert listening[name] == ":" + address.partition(":")[2]
    assert set(listening) == {
        entry.split(":")[0] for entry in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    }
    assert service("kafka")["ports"] == ["127.0.0.1:9092:9092"]
    assert all(isinstance(value, str) for value in environment.values()), "compose takes no other type for some"
    assert len(base64.b64decode(environment["CLUSTER_ID"] + "==", validate=True)) == 16


def test_the_parts_agree_with_each_other() -> None:
    config = load_config(STREAM, {})
    assert config.kafka.bootstrap_servers == ["kafka:29092"]
    command = service("topics")["command"]
    assert command[command.index("--topic") + 1] == config.input.topic
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert prometheus["scrape_configs"] == [
        {"job_name": "lstmstream", "static_configs": [{"targets": [f"lstmstream:{config.http.port}"]}]}
    ]
    assert service("lstmstream")["ports"] == [f"127.0.0.1:{config.http.port}:{config.http.port}"]
    for name in ("lstmstream", "prometheus", "grafana"):
        for volume in service(name)["volumes"]:
            source = volume.split(":")[0]
            assert source in compose()["volumes"] or (ROOT / source).exists(), volume


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "lstmstream.yml").read_text())["providers"]
    grafana = service("grafana")
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    dashboard = mounts["./deploy/grafana/lstmstream.json"]
    assert dashboard.rpartition("/")[0] == provider["options"]["path"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    rules = [volume.split(":")[1] for volume in service("prometheus")["volumes"] if "rules.yml" in volume]
    assert rules == [f"/etc/prometheus/{name}" for name in prometheus["rule_files"]]


# -- locks -------------------------------------------------------------------------------------------------------------


def requirements(lock: Path) -> dict[str, list[str]]:
    """Each pinned requirement of a lock and its hashes."""
    found: dict[str, list[str]] = {}
    last = ""
    for line in lock.read_text().splitlines():
        if line.startswith("    --hash="):
            found[last].append(line.strip(" \\").removeprefix("--hash="))
        elif not line.lstrip().startswith("#"):
            last = line.rstrip(" \\")
            found[last] = []
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_is_versions_and_hashes_and_names_no_place(lock: Path) -> None:
    assert "://" not in lock.read_text()
    entries = requirements(lock)
    assert entries
    for requirement, hashes in entries.items():
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; .+)?", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", entry) for entry in hashes), requirement


def test_locks_that_are_installed_together_agree() -> None:
    versions: dict[str, str] = {}
    for lock in LOCKS:
        if lock.stem in {"docs", "tools"}:
            continue  # environments of their own
        for requirement in requirements(lock):
            pin, _, marker = requirement.partition(" ; ")
            name = pin.partition("==")[0] + (marker if "python_full_version" in marker else "")
            assert versions.setdefault(name, pin) == pin, lock.name


def test_the_base_lock_has_neither_torch_nor_onnx() -> None:
    names = {requirement.partition("==")[0] for requirement in requirements(ROOT / "requirements" / "base.txt")}
    assert {"kafka-python", "onnxruntime"} <= names
    assert not {"torch", "onnx", "triton"} & names


def test_the_makefile_installs_by_hash_only() -> None:
    text = (ROOT / "Makefile").read_text()
    installs = [line for line in text.splitlines() if re.search(r"pip install|\$\(LOCKED\)", line)]
    assert len(installs) > 5
    for line in installs:
        assert "--require-hashes" in line or "$(LOCKED)" in line or "--no-deps --no-build-isolation --no-index" in line


def test_a_package_that_is_not_the_locked_one_is_refused(tmp_path: Path) -> None:
    """A forged wheel under a locked name and version: pip must not take it."""
    lock = requirements(ROOT / "requirements" / "test.txt")
    requirement = next(entry for entry in lock if entry.startswith("iniconfig=="))
    version = requirement.partition("==")[2]
    with zipfile.ZipFile(tmp_path / f"iniconfig-{version}-py3-none-any.whl", "w") as wheel:
        folder = f"iniconfig-{version}.dist-info"
        wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: iniconfig\nVersion: {version}\n")
        wheel.writestr(
            f"{folder}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{folder}/RECORD", "")
    (tmp_path / "lock.txt").write_text(requirement + "".join(f" --hash={entry}" for entry in lock[requirement]) + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--find-links", str(tmp_path)]
    command += ["--no-deps", "--target", str(tmp_path / "target")]
    forged = subprocess.run([*command, requirement], env=environment, capture_output=True, text=True, check=False)
    assert forged.returncode == 0, "without hashes it would be taken: " + forged.stderr
    command += ["--require-hashes", "-r", str(tmp_path / "lock.txt"), "--upgrade"]
    locked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert locked.returncode != 0
    assert "DO NOT MATCH THE HASHES" in locked.stderr


# -- systemd -----------------------------------------------------------------------------------------------------------

UNIT = ROOT / "deploy" / "systemd" / "lstmstream.service"


def unit() -> dict[str, str]:
    lines = [line for line in UNIT.read_text(encoding="utf-8").splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_unit_restarts_what_a_restart_helps_and_gives_time_to_hand_over() -> None:
    here = unit()
    assert here["Restart"] == "on-failure"
    assert here["RestartPreventExitStatus"] == "2"
    assert int(here["TimeoutStopSec"]) > load_config(STREAM, {}).shutdown_timeout + 5
    assert here["KillMode"] == "mixed", "workers are stopped by their parent"
    assert "LSTMSTREAM_KAFKA__PROPERTIES__GROUP_INSTANCE_ID=%H" in here["Environment"]
    assert here["DynamicUser"] == here["NoNewPrivileges"] == here["PrivateTmp"] == "yes"
    assert here["ProtectSystem"] == "strict"
    assert here["CapabilityBoundingSet"] == ""


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = find_program("systemd-analyze", install="a part of systemd")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/lstmstream/bin/lstmstream", sys.executable))
    done = subprocess.run([program, "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
