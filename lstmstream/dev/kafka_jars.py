"""Finds the system's Java, and fetches Kafka's jars with Maven, once per user."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lstmstream.errors import CannotServe

KAFKA_VERSION = "4.1.0"  # as in pom.xml
POM = Path(__file__).with_name("pom.xml")

_MIN_JAVA = 17
_DOWNLOAD_S = 600.0
_REMEDY = (
    "install it (Debian, Ubuntu: `apt-get install openjdk-17-jre-headless maven`), "
    "or run `docker compose up -d kafka` and pass `--bootstrap-servers 127.0.0.1:9092`"
)

log = logging.getLogger(__name__)


def find_java() -> str:
    """Return the path of a Java that can run Kafka: JAVA_HOME's, or the first on PATH.

    Raises:
        CannotServe: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = (home and shutil.which("java", path=f"{home}/bin")) or shutil.which("java")
    if not java:
        raise CannotServe(
            f"Java {_MIN_JAVA} or newer is needed for the development broker, and `java` is not on PATH; {_REMEDY}"
        )
    result = subprocess.run([java, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', result.stderr)  # Java 8 calls itself 1.8
    if found is None or int(found[1]) < _MIN_JAVA:
        first_line = (result.stderr.splitlines() or ["nothing"])[0]
        raise CannotServe(
            f"Java {_MIN_JAVA} or newer is needed for the development broker, and {java} is {first_line}; {_REMEDY}"
        )
    return java


def jars_folder() -> Path:
    """Return where this user's jars are, or will be. Each version of pom.xml has its own folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()
    return cache / "lstmstream" / f"kafka-{KAFKA_VERSION}-{digest[:8]}"


def fetch_jars() -> Path:
    """Return the folder with Kafka's jars, after downloading them (54 MiB) if they are missing.

    The folder appears complete or not at all, and of several processes only one downloads.

    Raises:
        CannotServe: there is no Maven, or the download failed.
    """
    folder = jars_folder()
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise CannotServe(f"Maven is needed to download the development broker, and `mvn` is not on PATH; {_REMEDY}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as temporary:
                _run_maven(maven, Path(temporary))
                (Path(temporary) / "jars").rename(folder)
    return folder


def _run_maven(maven: str, work: Path) -> None:
    log.info("downloading Kafka %s with Maven", KAFKA_VERSION)
    shutil.copy(POM, work)  # Maven writes beside the pom, and the package's folder may be read-only
    command = [maven, "-q", "-B", "--strict-checksums", "-Dstyle.color=never", "-f", str(work / POM.name)]
    command += ["dependency:copy-dependencies", f"-DoutputDirectory={work / 'jars'}"]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_S
        )
    except subprocess.TimeoutExpired as error:
        raise CannotServe(f"Maven did not download Kafka's jars within {_DOWNLOAD_S:g} s; check the network") from error
    if result.returncode != 0:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("[ERROR]")]
        why = lines[0].removeprefix("[ERROR]").strip() if lines else f"exit code {result.returncode}"
        raise CannotServe(f"Maven could not download Kafka's jars: {why}; check the network and ~/.m2/settings.xml")
