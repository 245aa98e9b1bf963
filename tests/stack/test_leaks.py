"""No secret is anywhere but in its file: prod is started with secrets that are known, used, and searched for."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import quote

import pytest

from ops.secrets.passwords import SIGNING_KEY, USERS
from tests.stack.conftest import MakeStack, Stack
from tests.stack.leaks import Processes, Source, leaks, of_container, of_folder, of_image, output

EVERY_COMMAND = ("", "worker", "health", "queue", "job", "dead", "task", "load-test")


class Marked:
    """A stack in use, with every secret that it had, and what was seen meanwhile."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.folder = stack.folder / "secrets" / "prod"
        self.secrets: dict[str, str] = {}
        self.seen: list[Source] = []

    def note(self, when: str) -> None:
        """Remember the secrets as they are now: of a key a line in its midst, as it might be anywhere in a text."""
        for file in self.folder.iterdir():
            if file.name in (*USERS.values(), SIGNING_KEY):
                self.secrets[f"{file.name} {when}"] = file.read_text()
            elif file.suffix == ".key":
                self.secrets[f"{file.name} {when}"] = file.read_text().splitlines()[2]

    def run(self, *command: str) -> None:
        """Do something, and keep what it says, whether it goes well or not."""
        self.seen.append((" ".join(command), output(*command, folder=self.stack.folder)))

    @contextmanager
    def monitored(self) -> Iterator[None]:
        """Keep what Redis shows of the commands that it gets, in its slow log and to `monitor`."""
        self.stack.redis("config", "set", "slowlog-log-slower-than", "0", "slowlog-max-len", "10000")
        with subprocess.Popen(redis_cli("monitor"), cwd=self.stack.folder, stdout=subprocess.PIPE) as monitor:
            assert monitor.stdout is not None
            assert monitor.stdout.readline() == b"OK\n"
            yield
            self.stack.redis("client", "kill", "type", "normal")
            self.seen.append(("monitor", monitor.communicate(timeout=10)[0]))
        self.run(*redis_cli("slowlog", "get", "-1"))


def redis_cli(*arguments: str) -> list[str]:
    return ["python3", "-m", "ops", "--env", "prod", "redis-cli", *arguments]


@pytest.fixture(scope="module")
def marked(make_stack: MakeStack) -> Marked:
    stack = make_stack("prod", LOG_LEVEL="DEBUG")
    made = Marked(stack)
    made.folder.mkdir(parents=True, mode=0o700)
    for name in (*USERS.values(), SIGNING_KEY):
        (made.folder / name).write_text(f"{token_urlsafe(32)}/+%&=")
    with Processes() as processes:
        made.run("make", "up", "ENV=prod")
        made.note("at first")
        with made.monitored():
            made.run("make", "load-test", "ENV=prod", "ARGS=failure -n 10")
            made.run("make", "secrets-rotate", "ENV=prod")
            made.note("rotated")
            made.run("make", "secrets-rotate", "USER=producer", "ARGS=--finish", "ENV=prod")
            made.run("make", "certs", "ARGS=--renew server", "ENV=prod")
            made.note("renewed")
            made.run("make", "load-test", "ENV=prod", "ARGS=io -n 50")
            made.run("make", "doctor", "ENV=prod")
            login = "redis-cli $REDIS_CLI_TLS --user worker --pass wrong ping"
            made.run("docker", "exec", stack.container("redis"), "sh", "-c", login)
            stack.redis("set", "app:planted", "a planted text")
        made.seen += processes.sources()
    return made


def containers(stack: Stack) -> list[str]:
    return [stack.container("worker"), stack.container("redis")]


def test_what_was_searched_for_and_through_is_what_was_used(marked: Marked) -> None:
    assert len(marked.secrets) == 3 * 5 + 3 * 3
    assert len(set(marked.secrets.values())) == 5 + 4 + 3 + 1, "one of each, new passwords, and a new key of Redis"
    said = dict(marked.seen)
    assert b"WRONGPASS" in b"".join(said.values())
    for source in ("monitor", " ".join(redis_cli("slowlog", "get", "-1"))):
        assert leaks({"planted": "a planted text"}, [(source, said[source])])
    assert any(b"SETUSER" in content for name, content in marked.seen if name == "a process"), (
        "the rotation was watched"
    )


def test_commands_and_processes_showed_none(marked: Marked) -> None:
    assert leaks(marked.secrets, marked.seen) == []


def test_containers_show_none(marked: Marked) -> None:
    for container in containers(marked.stack):
        assert leaks(marked.secrets, of_container(container)) == []


def test_images_have_none(marked: Marked) -> None:
    image = marked.stack.inspect("worker")["Config"]["Image"]
    assert leaks(marked.secrets, of_image(image)) == []


def test_networks_and_volumes_show_none(marked: Marked) -> None:
    for kind in ("network", "volume"):
        ours = output(
            "docker", kind, "ls", "--quiet", "--filter", f"label=com.docker.compose.project={marked.stack.project}"
        )
        assert len(ours.split()) == 2
        assert leaks(marked.secrets, [(kind, output("docker", kind, "inspect", *ours.decode().split()))]) == []


def test_compose_shows_none(marked: Marked) -> None:
    shown = [
        ("config", marked.stack.compose("config").encode()),
        ("config, as json", marked.stack.compose("config", "--format", "json").encode()),
        ("ps", marked.stack.compose("ps", "--all", "--no-trunc", "--format", "json").encode()),
        ("logs", marked.stack.compose("logs", "--timestamps").encode()),
    ]
    assert leaks(marked.secrets, shown) == []


def test_redis_shows_none_and_stores_none(marked: Marked) -> None:
    commands = ["config get *", "client list", "info everything", "acl list", "acl log", "latency latest"]
    shown = [(command, marked.stack.redis(*command.split()).encode()) for command in commands]
    shown.append(
        ("data", output("docker", "exec", marked.stack.container("redis"), "sh", "-c", "cat $(find /data -type f)"))
    )
    assert leaks({"planted": "a planted text"}, shown), "the data are there"
    assert leaks(marked.secrets, shown) == []


def test_the_app_shows_none(marked: Marked) -> None:
    shown = [
        (command, str(marked.stack.app(*command.split(), check=False)).encode())
        for command in ("health status", "dead ls")
    ]
    worker = marked.stack.container("worker")
    shown += [
        (f"{command} --help", output("docker", "exec", worker, "my-app", *command.split(), "--help"))
        for command in EVERY_COMMAND
    ]
    assert leaks(marked.secrets, shown) == []


def test_nothing_was_written_beside_the_secrets(marked: Marked) -> None:
    assert leaks(marked.secrets, of_folder(marked.stack.folder, "secrets", ".venv")) == []


#: Settings that are wrong, with a secret in them.
WRONG = [
    "REDIS_PASSWORD={secret}",
    "WORKER_SIGNING_KEY={short}",
    "REDIS_URL=redis://worker:{quoted}@redis:6379/9",
    "REDIS_URL=redis://worker:{quoted}@redis:port",
    "REDIS_URL=redis://worker:{quoted}@redis:6379?a=b",
    "REDIS_URL=redis://worker:{quoted}@redis:6379",
    "REDIS_URL=http://worker:{quoted}@redis",
    "REDIS_URL=redis://worker:{quoted}@nowhere:6379",
    "REDIS_URL=redis://worker:{quoted}@[redis:6379",
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "command",
    [["my-app", "health", "probe"], ["my-app", "worker"], ["python", "-c", "import app.core.config"]],
    ids=" ".join,
)
def test_what_says_that_a_setting_is_wrong_does_not_show_it(marked: Marked, wrong: str, command: list[str]) -> None:
    secret = f"{token_urlsafe(32)}/+%&="
    short = secret[:20]
    setting = wrong.format(secret=secret, short=short, quoted=quote(secret, safe=""))
    also = ["--env", "LOG_LEVEL=DEBUG", "--env", "WORKER_MAX_TRIES=none"] if command[0] == "python" else []
    run = ["docker", "exec", "--env", setting, *also, marked.stack.container("worker"), "timeout", "10", *command]
    said = output(*run)
    assert said, "it says something"
    assert leaks({"secret": secret, "short": short}, [(wrong, said)]) == []


# -- the search itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_a_secret_is_found_in_any_encoding(before: str) -> None:
    secret = "mark?>~/+%&="
    text = f"{before}{secret} and after".encode()
    for encoded in (
        text,
        quote(text, safe="").encode(),
        text.hex().encode(),
        text.hex().upper().encode(),
        b64encode(text),
    ):
        assert leaks({"mark": secret}, [("text", b"... " + encoded)])
    assert not leaks({"mark": secret}, [("text", b"mark?>~ /+%&=")])


@pytest.fixture
def planted(marked: Marked) -> Iterator[tuple[str, str, str]]:
    """A secret, a container that shows it wherever one can, and an image that was made of that."""
    secret, image = token_urlsafe(32), marked.stack.inspect("worker")["Config"]["Image"]
    script = f"echo $PLANTED | tee /tmp/{secret}; sleep 60; : {secret}"
    options = ["--rm", "--detach", "--env", f"PLANTED={secret}", "--label", f"planted={secret}", "--entrypoint", "sh"]
    container = marked.stack.run("docker", "run", *options, image, "-c", script).stdout.strip()
    made = marked.stack.run("docker", "commit", "--change", f"LABEL planted={secret}", container).stdout.strip()
    yield secret, container, made
    marked.stack.run("docker", "kill", container)
    marked.stack.run("docker", "rmi", made)


def test_a_secret_is_found_wherever_one_can_be(planted: tuple[str, str, str], tmp_path: Path) -> None:
    secret, container, image = planted
    with Processes() as processes:
        output("sh", "-c", f"sleep 0.2; : {secret}")
    (tmp_path / "file").write_text(secret)
    for sources in ([*of_container(container)], [*of_image(image)], processes.sources(), [*of_folder(tmp_path)]):
        found = {leak.partition(":")[0] for leak in leaks({"planted": secret}, sources)}
        assert found == {name for name, _ in sources}
