"""Write the pages that are generated: ``docs/configuration.md`` and ``docs/cli.md``.

The meaning of a setting of the app stands where the setting is declared. The meaning of a variable of Compose stands
in the comment above it, in ``env/base.env``. The text of a command is its docstring and the help of its options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from aegis_worker import cli
from aegis_worker.settings import QueueOverrides
from app.core.config import Settings

DOCS = Path(__file__).resolve().parent
ENV = DOCS.parent / "env"

# -- configuration.md -------------------------------------------------------------------------------------------------

HEAD = """\
# Configuration

This page lists every variable. `make docs` generates it from the settings in the code and from `env/`.

- `env/base.env` holds the defaults of all environments.
- `env/<ENV>.env` is one environment. It holds only what differs from `env/base.env`.
- `env/<ENV>.local.env` holds what is different on one machine. Git ignores this file.

A later file wins over an earlier one. Variables of your shell win over all files, but only for what Compose reads:
limits, replicas, images and ports. After a change, run `make up ENV=<ENV>`.

The columns *dev* and *prod* show what these two environments change. An empty cell means the default.
"""
SECRETS = """\
## Secrets

Secrets are files in `secrets/<ENV>/`. The first `make up` creates them, and git ignores them. Containers read them from
`/run/secrets/`. The command line on the host reads them from `secrets/<ENV>/`. No secret is in an env file, an image,
an argument or a log.

| file | content |
|---|---|
| `redis_password` | `REDIS_PASSWORD`: the password of the Redis user `worker`, for workers and the command line |
| `redis_producer_password` | the password of the user `producer`: [security](security.md#users-of-redis) |
| `redis_monitor_password` | the password of the user `monitor` |
| `redis_admin_password` | the password of the user `admin` |
| `worker_signing_key` | `WORKER_SIGNING_KEY`: the keys that sign jobs, one a line: [security](security.md#payloads) |
| `redis_acl` | the rights of each user, made from `redis/users.acl.template`; it holds hashes, no passwords |

An environment with the layer `compose/tls.yml` also has certificates. `make certs` creates and renews them:
[security](security.md#tls).

| file | content |
|---|---|
| `redis_ca.crt` | the certificate of the CA, for everybody who connects; used when `REDIS_SSL_CA_CERTS` is not set |
| `redis_ca.key` | the key of the CA; no container gets it |
| `redis_server.crt`, `redis_server.key` | the certificate of Redis, and its key |
| `redis_client.crt`, `redis_client.key` | what a client shows when Redis asks for a certificate (`REDIS_TLS_CLIENTS`) |
"""

STACK = [
    ("ENV", "", "The name of the environment. It has to be the name of the file."),
    ("COMPOSE_PROJECT_NAME", "", "The name of the Compose project. Containers, networks and volumes begin with it."),
    ("COMPOSE_FILE", "", "The layers, with a colon between them. `compose/base.yml` has to be the first."),
]


def parse(text: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return an env file's sections: title, and for each variable its name, value and the comment above it."""
    sections: list[tuple[str, list[tuple[str, str, str]]]] = [("", [])]
    comment: list[str] = []
    fresh = True
    for line in text.splitlines():
        if line.startswith("# -- "):
            sections.append((line.strip("# -"), []))
            comment = []
        elif line.startswith("#"):
            comment = [*([] if fresh else comment), line.removeprefix("#").strip()]
            fresh = False
        elif "=" in line:
            name, _, value = line.partition("=")
            sections[-1][1].append((name, value, " ".join(comment)))
            fresh = True
        else:
            comment = []
    return [section for section in sections if section[1]]


def values(name: str) -> dict[str, str]:
    return {key: value for _, rows in parse((ENV / f"{name}.env").read_text()) for key, value, _ in rows}


def code(value: str | None) -> str:
    return f"`{value}`" if value else ""


def table(rows: list[tuple[str, str, str]], dev: dict[str, str], prod: dict[str, str]) -> list[str]:
    lines = ["| variable | default | dev | prod | meaning |", "|---|---|---|---|---|"]
    above = ""
    for name, value, comment in rows:
        field = Settings.model_fields.get(name)
        meaning = (field.description if field else comment) or ""
        values = " | ".join(code(text) for text in (name, value, dev.get(name), prod.get(name)))
        lines.append(f"| {values} | {'*see above*' if meaning == above else meaning} |")
        above = meaning
    return lines


def page() -> str:
    """Return the page of all variables."""
    dev, prod = values("dev"), values("prod")
    lines = [HEAD]
    for title, rows in parse((ENV / "base.env").read_text()):
        rows = [*STACK, *rows] if title == "which stack" else rows
        lines += [f"## {title[0].upper()}{title[1:]}", "", *table(rows, dev, prod), ""]
    lines += ["## Variables of one queue", ""]
    lines += [
        "`<QUEUE>` is the name of the queue in capital letters, as in `WORKER_MEDIA_MAX_JOBS`. A variable of a queue"
    ]
    lines += ["wins over what the queue's class `WorkerSettings` says.", ""]
    lines += ["| variable | meaning |", "|---|---|"]
    lines += [
        f"| `WORKER_<QUEUE>_{name}` | {field.description} |" for name, field in QueueOverrides.model_fields.items()
    ]
    return "\n".join([*lines, "", SECRETS])


# -- cli.md -----------------------------------------------------------------------------------------------------------

CLI_HEAD = """\
# The command line: my-app

`my-app` works with workers, queues and jobs. It talks to Redis and to nothing else. `aegis-worker` is a second name of
the same program. `make docs` generates this page from the code.

There are three ways to run it:

```sh
make shell                                     # a shell in a worker's container; type my-app there
python3 -m ops --env prod app health probe     # one command in a worker's container, for scripts
.venv/bin/my-app health status                 # on the host, after `make test` or `make local`; for dev
```

Options such as `--json` come after the command. With `--json` a command prints one JSON document.
`my-app COMMAND --help` prints the same text as this page.

The exit codes mean the same everywhere:
"""


def cli_page() -> str:
    """Return the page of all commands."""
    root: Any = typer.main.get_command(cli.app)
    lines = [CLI_HEAD, *_exit_codes(root.help), ""]
    names = root.list_commands(None)
    commands = {name: root.get_command(None, name) for name in names}
    lines += ["| group | what it is for |", "|---|---|"]
    lines += [f"| [`{name}`](#{_anchor(name, each)}) | {_summary(each)} |" for name, each in commands.items()]
    for name, each in commands.items():
        inner = getattr(each, "commands", None)
        if inner is None:
            lines += ["", *_command(name, each)]
            continue
        lines += ["", f"## {name}", "", each.help.strip()]
        for sub, command in inner.items():
            lines += ["", *_command(f"{name} {sub}", command, level="###")]
    return "\n".join([*lines, ""])


def _anchor(name: str, command: Any) -> str:
    return name if getattr(command, "commands", None) else f"my-app-{name}"


def _summary(command: Any) -> str:
    return str(command.help).strip().partition("\n\n")[0].replace("\n", " ")


def _command(name: str, command: Any, level: str = "##") -> list[str]:
    """Return the section of one command."""
    text, _, codes = command.help.strip().partition("Exit code ")
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join(["my-app", name, *(["[OPTIONS]"] if options else []), *(_metavar(each) for each in arguments)])
    lines = [f"{level} my-app {name}", "", "```", usage, "```", "", *text.strip().splitlines()]
    rows = [f"| `{_metavar(each)}` | {_help(each)} |" for each in arguments]
    rows += [f"| {_flags(each)} | {_help(each)} |" for each in options]
    if rows:
        lines += ["", "| argument or option | meaning |", "|---|---|", *rows]
    if codes:
        lines += ["", *_exit_codes(f"Exit code {codes}")]
    return lines


def _exit_codes(text: str) -> list[str]:
    """Return the lines ``Exit code N: …`` of a docstring as a table."""
    rows = []
    for line in text.strip().splitlines():
        if line.startswith(("Exit code ", "Any other: ")):
            number, _, meaning = line.removeprefix("Exit code ").partition(": ")
            rows.append(f"| {number.lower()} | {meaning} |")
    return ["| exit code | meaning |", "|---|---|", *rows]


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _flags(option: Any) -> str:
    flags = [f"`{each}`" for each in (*option.opts, *option.secondary_opts)]
    return ", ".join(flags) + (f" `{option.metavar}`" if option.metavar else "")


def _help(parameter: Any) -> str:
    text = (parameter.help or "").strip()
    default = parameter.default
    if parameter.param_type_name == "option" and not parameter.is_flag and default not in (None, ""):
        text += f" Default: `{default}`."
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (DOCS / "configuration.md").write_text(page())
    (DOCS / "cli.md").write_text(cli_page())
