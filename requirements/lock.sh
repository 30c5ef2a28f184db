#!/bin/bash
# Writes the lock files beside this script: exact versions and hashes for every platform, from pyproject.toml's ranges.
# `make lock` calls it. One resolution of everything comes first, so that files installed together agree.
# What is in the locks already stays, as far as the ranges allow; `make lock UPGRADE=--upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}

compile() { # compile FILE ARGUMENT...
    local file=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
        --no-emit-index-url --no-emit-find-links --output-file "$file" "$@" >/dev/null
    sed -i "/^ *#  *-c /d" "$file" # that a constraint agreed says nothing of why the package is here
}

everything=requirements/.everything.txt
trap 'rm -f "$everything"' EXIT
if [[ -z ${UPGRADE:-} ]]; then
    cat requirements/*.txt >"$everything" 2>/dev/null || true
fi
compile "$everything" pyproject.toml --extra train --group build --group check --group test
compile requirements/base.txt pyproject.toml --constraints "$everything"
compile requirements/train.txt pyproject.toml --extra train --constraints "$everything"
for group in build check test; do
    compile "requirements/$group.txt" --group "$group" --constraints "$everything"
done
compile requirements/tools.txt --group tools ${UPGRADE:-}

if grep -nE '://|^-' requirements/*.txt; then
    echo "a lock file names a place on the network (the lines above); it must name only packages and hashes" >&2
    exit 1
fi
