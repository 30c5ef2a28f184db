"""Compiles the optional codec into the package `lstmstream`.

    python native/build.py [--out FOLDER] [--sanitize] [--strict] [--required]

Needs a C compiler ($CC, else cc, gcc or clang) and Python's headers. Where they are missing, or the compiler fails, it
says so and ends with 0, for all works without the codec; `--required` ends with 1 then. The file fits Python 3.11 and
all later ones. Uses the standard library only.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "_codec.abi3.so"
FLAGS = ["-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wconversion"]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
LINK = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


def find_tools() -> tuple[list[str], Path]:
    """The compiler, and the folder of Python's headers. Raises RuntimeError saying what this machine lacks."""
    compiler = shlex.split(os.environ.get("CC", ""))
    if not compiler:
        found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if found is None:
            raise RuntimeError("there is no C compiler (cc, gcc or clang)")
        compiler = [found]
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        raise RuntimeError("Python's headers are missing (Debian, Ubuntu: apt-get install python3-dev)")
    return compiler, headers


def compile_codec(folder: Path, flags: list[str]) -> Path:
    """The file that was made. Raises RuntimeError saying what is missing."""
    compiler, headers = find_tools()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".codec-") as scratch:
        made = Path(scratch) / NAME
        command = [*compiler, *FLAGS, *flags, *LINK, f"-I{headers}", str(HERE / "codec.c"), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RuntimeError(f"{compiler[0]} cannot be run: {error.strerror}") from error
        if done.returncode:
            raise RuntimeError(f"the compiler failed:\n{done.stderr.strip()}")
        made.replace(folder / NAME)  # at once: a daemon may have the one before loaded
    return folder / NAME


def main() -> int:
    """Compile, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "lstmstream", help="default: the package beside it")
    parser.add_argument("--sanitize", action="store_true", help="with checks of memory and of undefined behaviour")
    parser.add_argument("--strict", action="store_true", help="a warning of the compiler is an error")
    parser.add_argument("--required", action="store_true", help="end with 1 where it cannot be compiled")
    args = parser.parse_args()
    flags = [*(SANITIZE if args.sanitize else []), *(["-Werror"] if args.strict else [])]
    try:
        made = compile_codec(args.out, flags)
    except RuntimeError as error:
        print(f"codec: pure Python, for {error}", file=sys.stderr)
        return 1 if args.required else 0
    print(f"codec: compiled to {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
