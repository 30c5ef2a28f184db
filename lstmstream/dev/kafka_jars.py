"""Where Java and Kafka's jars come from: the system's Java, and Maven once per user.

Knows nothing of a broker's settings or data.
"""

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

_LEAST_JAVA = 17
_DOWNLOAD_S = 600.0
_REMEDY = (
    "install it (Debian, Ubuntu: `apt-get install openjdk-17-jre-headless maven`), "
    "or run `docker compose up -d kafka` and pass `--bootstrap-servers 127.0.0.1:9092`"
)

log = logging.getLogger(__name__)


def find_java() -> str:
    """The path of a Java that can run Kafka: JAVA_HOME's, or the first on PATH.

    Raises:
        CannotServe: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = (home and shutil.which("java", path=f"{home}/bin")) or shutil.which("java")
    if not java:
        raise CannotServe(
            f"Java {_LEAST_JAVA} or newer is needed for the development broker and `java` is not on PATH: {_REMEDY}"
        )
    answer = subprocess.run([java, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)  # Java 8 calls itself 1.8
    if found is None or int(found[1]) < _LEAST_JAVA:
        first_line = (answer.stderr.splitlines() or ["nothing"])[0]
        raise CannotServe(
            f"Java {_LEAST_JAVA} or newer is needed for the development broker and {java} says {first_line}: {_REMEDY}"
        )
    return java


def jars_folder() -> Path:
    """Where this user's jars are, or will be. A changed pom.xml has a folder of its own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()
    return cache / "lstmstream" / f"kafka-{KAFKA_VERSION}-{digest[:8]}"


def fetch_jars() -> Path:
    """The folder with Kafka's jars; fetches them (54 MiB) where they are not there yet.

    The folder appears complete or not at all, and of several processes only one downloads.

    Raises:
        CannotServe: no Maven, or it could not fetch.
    """
    folder = jars_folder()
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise CannotServe(f"Maven is needed to fetch the development broker and `mvn` is not on PATH: {_REMEDY}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as temporary:
                _run_maven(maven, Path(temporary))
                (Path(temporary) / "jars").rename(folder)
    return folder


def _run_maven(maven: str, work: Path) -> None:
    log.info("fetching Kafka %s with Maven", KAFKA_VERSION)
    shutil.copy(POM, work)  # Maven writes beside the pom, and the package's folder may be read-only
    command = [maven, "-q", "-B", "--strict-checksums", "-Dstyle.color=never", "-f", str(work / POM.name)]
    command += ["dependency:copy-dependencies", f"-DoutputDirectory={work / 'jars'}"]
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_S
        )
    except subprocess.TimeoutExpired as error:
        raise CannotServe(f"Maven did not fetch Kafka's jars within {_DOWNLOAD_S:g} s: check the network") from error
    if answer.returncode != 0:
        lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith("[ERROR]")]
        why = lines[0].removeprefix("[ERROR]").strip() if lines else f"exit code {answer.returncode}"
        raise CannotServe(f"Maven could not fetch Kafka's jars: {why} (check the network and ~/.m2/settings.xml)")
