#!/usr/bin/env bash
# Lock the dependencies of pyproject.toml into requirements/, with hashes and without an index's address, one file for
# each thing that is installed: the app, the app with an extra, a developer's tools on top of all. The library is in the
# checkout, so that only what it needs is locked. And those of each system that the benchmarks compare, into
# benchmarks/requirements/.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { # OUTPUT INPUT... [OPTION...]
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-emit-package aegis-worker \
    --custom-compile-command 'make lock' --output-file "$@"
  echo "$1"
}

lock requirements/app.txt pyproject.toml
lock requirements/media.txt pyproject.toml --extra media --constraints requirements/app.txt
lock requirements/dev.txt pyproject.toml requirements/dev.in --extra media --extra dev \
  --constraints requirements/media.txt
for input in requirements/build.in requirements/sbom.in benchmarks/requirements/*.in; do
  lock "${input%.in}.txt" "$input"
done
