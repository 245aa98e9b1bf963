"""Known vulnerabilities in locked packages: `python3 -m ops.audit LOCK… [--OPTION=VALUE…]`, with pip-audit's options.

It ends with 1 if there are any. If no service answers, it says so: that is no success.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from .engine import shell

SERVICES = ("osv", "pypi")  #: pip-audit's names of services with advisories; the first that answers is enough


def main(arguments: Sequence[str]) -> int:
    locks = [part for lock in arguments if not lock.startswith("-") for part in ("--requirement", lock)]
    options = [argument for argument in arguments if argument.startswith("-")]
    argv = ["pip-audit", *locks, *options, "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
    # A lock that cannot be read must not look like a service that does not answer.
    readable = shell.ask([*argv, "--dry-run"])
    if readable.returncode:
        print(f"FAIL  pip-audit\n{readable.stderr}", end="")
        return 1
    for service in SERVICES:
        ask = [*argv, "--vulnerability-service", service, "--format", "json", "--timeout", "10"]
        answer = shell.ask(ask).stdout
        asked = json.loads(answer)["dependencies"] if answer else []
        known = [dependency for dependency in asked if "skip_reason" not in dependency]
        if known:
            return tell(known, [dependency["name"] for dependency in asked if dependency not in known])
    print("skip  pip-audit skipped: no advisory service answers")
    return 0


def tell(known: Sequence[dict[str, Any]], unknown: Sequence[str]) -> int:
    """Print what is vulnerable, and what the service does not know. Return the exit code."""
    found = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for each in known
        for vulnerability in each["vulns"]
    ]
    print("FAIL  pip-audit" if found else "ok    pip-audit", *found, sep="\n")
    if unknown:
        print(f"      not known to the advisory service: {', '.join(unknown)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
