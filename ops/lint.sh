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
check hadolint hadolint Dockerfile
check shellcheck shellcheck "${shell_files[@]}"
check yamllint yamllint --strict .
# requirements/dev.txt has all that the app has, with every extra.
python3 -m ops.audit requirements/dev.txt requirements/sbom.txt || failed=1

# A layer can undo what another hardens, so the merged configurations are linted, not the files.
merged=$(mktemp --suffix=.yml)
trap 'rm -f "$merged"' EXIT
for file in env/*.env; do
  name=$(basename "$file" .env)
  [[ $name != base && $name != *.local ]] || continue
  python3 -m ops --env "$name" compose config >"$merged"
  check "compose-lint $name" compose-lint check --strict-config --config .compose-lint.yml --fail-on low "$merged"
done
exit $failed
