#!/usr/bin/env bash
# Every linter, over everything; all of them run, and the exit code says whether any found something.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0

check() { # NAME COMMAND...
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    echo "ok    $name"
  else
    printf 'FAIL  %s\n%s\n' "$name" "$output"
    failed=1
  fi
}

mapfile -t shell_files < <(git ls-files '*.sh' .ci/run)
check ruff ruff check .
check 'ruff format' ruff format --check .
check mypy mypy
check 'mypy, Python 3.10' mypy --python-version 3.10 --cache-dir .mypy_cache/3.10 ops
check import-linter lint-imports --no-cache
check hadolint hadolint Dockerfile
check shellcheck shellcheck "${shell_files[@]}"
check yamllint yamllint --strict .
# requirements/dev.txt has all that the app has, with every extra.
python3 -m ops.audit requirements/dev.txt requirements/sbom.txt || failed=1

# A layer can undo what another hardens, so the merged configurations are linted, not the files: each environment's, also
# with the layers that can be added. `low` is the least severity that compose-lint knows.
merged=$(mktemp --directory)
trap 'rm -rf "$merged"' EXIT
for file in env/*.env; do
  name=$(basename "$file" .env)
  [[ $name != base && $name != *.local ]] || continue
  own=$(sed -n 's/^COMPOSE_FILE=//p' "$file")
  for more in ''{,:secure-network}{,:tls}{,:queues}; do
    layers=$own
    for layer in ${more//:/ }; do
      [[ :$own: == *":compose/$layer.yml:"* ]] || layers+=:compose/$layer.yml
    done
    COMPOSE_FILE=$layers docker compose --env-file env/base.env --env-file "$file" config >"$merged/$name${more//:/+}.yml"
  done
done
check compose-lint compose-lint check --strict-config --config .compose-lint.yml --fail-on low "$merged"/*.yml
exit $failed
