#!/usr/bin/env bash
# Every linter, over everything; all of them run, and the exit code says whether any found something.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0

check() { # NAME COMMAND...
  local name=$1
  shift
  if output=$("$@" 2>&1); then
    echo "ok    $name"
  else
    echo "FAIL  $name"
    echo "$output"
    failed=1
  fi
}

# A layer can undo what another hardens, so the merged configurations are linted, not the files.
merged() { # ENV
  local file
  file=$(mktemp --suffix=.yml)
  python3 -m ops --env "$1" compose config >"$file" && compose-lint --config .compose-lint.yml "$file"
  local code=$?
  rm -f "$file"
  return $code
}

mapfile -t shell_files < <(git ls-files '*.sh' .ci/run)
check ruff ruff check .
check 'ruff format' ruff format --check .
check mypy mypy
check hadolint hadolint Dockerfile
check shellcheck shellcheck "${shell_files[@]}"
check yamllint yamllint --strict .
for file in env/*.env; do
  name=$(basename "$file" .env)
  case $name in base | *.local) ;; *) check "compose-lint $name" merged "$name" ;; esac
done
exit $failed
