"""The Dockerfile by its stages; and `python -m tests.dockerfile`, which builds an image's content without a container.

    python -m tests.dockerfile [daemon | cuda | train]

It runs exactly the commands of the stages that the image is made of, in a new folder that stands for the root of the
file system, with a new environment of this machine's Python 3.11 for the base image's. What it cannot show: the base
image itself. Then it does what the image does: starts the daemon, asks it by the image's HEALTHCHECK, and stops it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
APT = "RUN apt-get"
MOST_BYTES = 260 << 20  # of the daemon's packages
WAIT_S = 180.0

Step = tuple[str, str]  # instruction, arguments


def instructions() -> list[Step]:
    """The Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines()) if name]


def stages() -> dict[str, list[Step]]:
    """The steps of each stage, its FROM first, by its name."""
    found: dict[str, list[Step]] = {}
    for name, rest in instructions():
        if name == "FROM":
            found[rest.split()[-1]] = []
        if found:
            found[list(found)[-1]].append((name, rest))
    return found


def stage(name: str) -> list[Step]:
    """The steps of a stage behind those of the stages that it is made from."""
    (_, source), *own = stages()[name]
    base = source.split()[0]
    return [*(stage(base) if base in stages() else []), *own]


class Build:
    """The stages of one image in folders: `root/STAGE` is the file system of that stage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        python = folder / "python"
        venv.create(python, with_pip=True)
        keep = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self._environment = keep | {"PATH": f"{python / 'bin'}:/usr/bin:/bin", "HOME": str(folder)}

    def root(self, name: str) -> Path:
        """Where the files of a stage are."""
        return self._folder / "root" / name

    def run(self, name: str) -> None:
        """Make a stage, and those that it copies from."""
        if self.root(name).exists():
            return
        self.root(name).mkdir(parents=True)
        environment, here = dict(self._environment), "/"
        for step, rest in stage(name):
            if step == "ENV":
                environment |= dict(pair.split("=", 1) for pair in rest.split() if not pair.startswith("PATH="))
            elif step == "WORKDIR":
                here = rest
                self._inside(name, here, "").mkdir(parents=True, exist_ok=True)
            elif step == "COPY":
                self._copy(name, here, rest.split())
            elif step == "RUN" and not f"RUN {rest}".startswith(APT):
                print(f"[{name}] {rest}", flush=True)
                command = rest.replace("/opt/lstmstream", str(self.root(name) / "opt" / "lstmstream"))
                subprocess.run(command, shell=True, check=True, env=environment, cwd=self._inside(name, here, ""))

    def _inside(self, name: str, here: str, path: str) -> Path:
        return self.root(name) / Path(here, path).relative_to("/")

    def _copy(self, name: str, here: str, arguments: list[str]) -> None:
        *sources, target = arguments
        if sources[0].startswith("--from="):
            other = sources.pop(0).removeprefix("--from=")
            self.run(other)
            paths = [self._inside(other, "/", source) for source in sources]
        else:
            paths = [ROOT / source for source in sources]
        for path in paths:
            to = self._inside(name, here, target)
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.so") if path.is_relative_to(ROOT) else None
                shutil.copytree(path, to, symlinks=True, dirs_exist_ok=True, ignore=ignore)
            else:
                shutil.copy(path, to / path.name if target.endswith("/") else to)


def serve(environment: Path, folder: Path) -> None:
    """The daemon, as the image starts it: alive by the image's HEALTHCHECK without a broker, and stopped cleanly."""
    steps = dict(stage("daemon"))
    entry, command = json.loads(steps["ENTRYPOINT"])[0], json.loads(steps["CMD"])
    check = json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])
    config = folder / "stream.yaml"
    config.write_text((ROOT / "deploy" / "compose" / "stream.yaml").read_text().replace("kafka:29092", "127.0.0.1:1"))
    # The first line of the script names the stage's Python; COPY --from keeps the path, a folder of ours does not.
    python = str(environment / "bin" / "python")
    arguments = [str(config) if part.endswith(".yaml") else part for part in command]
    daemon = subprocess.Popen([python, str(environment / "bin" / entry), *arguments], cwd=folder, env={})
    try:
        deadline = time.monotonic() + WAIT_S
        while subprocess.run([python, *check[1:]], capture_output=True, check=False).returncode:
            assert daemon.poll() is None, "the daemon has ended"
            assert time.monotonic() < deadline, "the HEALTHCHECK does not become good"
            time.sleep(0.2)
        daemon.terminate()
        assert daemon.wait(WAIT_S) == 0, "not a clean end"
    finally:
        daemon.kill()


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main(image: str) -> None:
    """Build it, and try it out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = Build(folder)
        build.run(image)
        environment = build.root(image) / "opt" / "lstmstream"
        print(f"{image}: {size_of(environment) / 2**20:.0f} MiB in /opt/lstmstream", flush=True)
        if image == "daemon":
            assert size_of(environment) <= MOST_BYTES, f"more than {MOST_BYTES >> 20} MiB"
            serve(environment, folder)
        else:
            (lock,) = [rest for step, rest in stage(image) if step == "COPY"]
            print(f"{lock}: built, and `lstmstream --version` ran in it")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["daemon"]))
