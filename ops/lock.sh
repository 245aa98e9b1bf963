#!/usr/bin/env bash
# Lock the dependencies of pyproject.toml into requirements/, with hashes and without an index's address, one file for
# each thing that is installed: the app, the app with an extra, a developer's tools on top of all.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { # NAME [OPTION...]
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --custom-compile-command 'make lock' pyproject.toml --output-file "requirements/$1.txt" "${@:2}"
  echo "requirements/$1.txt"
}

lock app
lock media --extra media --constraints requirements/app.txt
lock dev --extra media --extra dev --constraints requirements/media.txt
