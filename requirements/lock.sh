#!/bin/bash
# Writes the lock files beside this script: exact versions and hashes for every platform, from pyproject.toml's ranges.
# `make lock` calls it. One resolution of everything comes first, so that files installed together agree.
# What is in the locks already stays, as far as the ranges allow; `make lock UPGRADE=--upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # compile FILE ARGUMENT... ; a lock that would say the same is not touched, so no environment is made anew
    local file=$1 new=$work/new.txt
    shift
    rm -f "$new"
    if [[ -f $file && -z ${UPGRADE:-} ]]; then cp "$file" "$new"; fi
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
        --no-emit-index-url --no-emit-find-links --output-file "$new" "$@" >/dev/null
    sed -i "/^ *#  *-c /d" "$new" # that a constraint agreed says nothing of why the package is here
    sed -i '/^$/d; /^# The following packages were excluded/d; /^# onnxruntime$/d' "$new" # of --no-emit-package
    cmp -s "$new" "$file" || cp "$new" "$file"
}

everything=$work/everything.txt
if [[ -z ${UPGRADE:-} ]]; then
    cat requirements/*.txt >"$everything" 2>/dev/null || true
fi
compile "$everything" pyproject.toml --extra train --group build --group check --group test --group foreign
compile requirements/base.txt pyproject.toml --constraints "$everything"
compile requirements/train.txt pyproject.toml --extra train --constraints "$everything"
# The two onnxruntimes share one import name, so the image for GPUs has only the one with CUDA.
compile requirements/cuda.txt pyproject.toml --extra gpu --no-emit-package onnxruntime --constraints "$everything"
for group in build check test foreign; do
    compile "requirements/$group.txt" --group "$group" --constraints "$everything"
done
compile requirements/docs.txt --group docs
compile requirements/tools.txt --group tools

if grep -nE '://|^-' requirements/*.txt; then
    echo "a lock file names a place on the network (the lines above); it must name only packages and hashes" >&2
    exit 1
fi
