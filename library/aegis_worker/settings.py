"""The settings of a project. They are read from the environment and checked all at once.

A project makes a subclass of :class:`Settings`, adds fields, and makes one instance. In a container the values come
from environment variables, which Compose sets from ``env/*.env``. Secrets come from the files in ``/run/secrets``.
Outside a container, a project that calls :func:`checkout` reads ``env/*.env`` and ``secrets/<ENV>/`` itself. There
``REDIS_URL_LOCAL``, or localhost with ``REDIS_PORT``, replaces ``REDIS_URL``.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from arq.connections import RedisSettings

from aegis_worker import extra
from aegis_worker.payload import Format, Serializer

try:
    from pydantic import Field, NonNegativeInt, PositiveInt, SecretStr, field_validator, model_validator
    from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
except ModuleNotFoundError as error:
    if explained := extra.explain(error, "aegis_worker.Settings, or code that uses it,"):
        raise ModuleNotFoundError(explained, name=error.name) from error
    raise

IN_CONTAINER = os.environ.get("IN_CONTAINER") == "1"  #: our image sets it

#: Seconds that a stop needs after the drain. In up to 10 of them cancelled jobs clean up, and their ends are stored.
#: The rest is for the worker's `shutdown`.
STOP_MARGIN_S = 12
_RUN_SECRETS = Path("/run/secrets")
_KEY_CHARACTERS = 32
_KEEPALIVE_OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")


def _sources(env_files: tuple[Path, ...], secrets: Path) -> SettingsConfigDict:
    return SettingsConfigDict(
        case_sensitive=False,
        env_file=env_files,
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        secrets_dir=secrets if secrets.is_dir() else None,
    )


def checkout(root: Path) -> SettingsConfigDict:
    """Return the ``model_config`` for the settings of a project.

    Outside a container the variable ``ENV``, by default ``dev``, names the environment whose files are read.

    :param root: the folder of the checkout, which contains ``env/`` and ``secrets/``
    """
    if IN_CONTAINER:
        return _sources((), _RUN_SECRETS)
    env = os.environ.get("ENV", "dev")
    return _sources(
        tuple(root / "env" / f"{name}.env" for name in ("base", env, f"{env}.local")), root / "secrets" / env
    )


class QueueOverrides(BaseSettings):
    """The variables ``WORKER_<QUEUE>_…``, which override the settings of one queue."""

    model_config = _sources((), _RUN_SECRETS)

    MAX_JOBS: PositiveInt | None = Field(None, description="jobs that one process runs at a time")
    JOB_TIMEOUT: PositiveInt | None = Field(None, description="seconds that a job may run before it is cancelled")
    KEEP_RESULT: NonNegativeInt | None = Field(None, description="seconds that a result is kept; 0 keeps none")
    MAX_TRIES: PositiveInt | None = Field(None, description="tries of a job that fails, the first one included")
    RATE_LIMIT: str | None = Field(
        None,
        pattern="^[1-9][0-9]*/[smh]$",
        description="most jobs that begin in a second, a minute or an hour, over all replicas: `10/s`, `300/m`, `5/h`",
    )
    GLOBAL_CONCURRENCY: PositiveInt | None = Field(None, description="most jobs that run at a time, over all replicas")


class Settings(BaseSettings):
    """The settings that the library reads. A project adds its own fields in a subclass."""

    model_config = _sources((), _RUN_SECRETS)

    ENVIRONMENT: str = Field("development", description="name of the environment, which tasks and queues can read")
    APP_VERSION: str = Field("dev", description="tag of the image, and the version that `make health` shows")
    APP_ENV: Literal["dev", "prod"] = Field("prod", description="`dev`: the worker restarts when code changes")
    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level that is logged")
    LOG_FORMAT: Literal["text", "json"] = Field("json", description="`text` for people, `json` for log collectors")

    REDIS_URL: str = Field("redis://localhost:6379", description="URL of Redis for containers")
    REDIS_URL_LOCAL: str | None = Field(
        None,
        description="URL of Redis outside a container, for example for the CLI; unset: localhost with `REDIS_PORT`, or "
        "`REDIS_URL`",
    )
    REDIS_PORT: int | None = Field(
        None, ge=1, le=65535, description="port on 127.0.0.1 that `compose/dev.yml` publishes"
    )
    REDIS_DB: NonNegativeInt = Field(0, description="database number")
    REDIS_USERNAME: str | None = Field(None, description="ACL user; unset: Redis's user `default`")
    REDIS_PASSWORD: SecretStr | None = Field(
        None, description="a file, `secrets/<ENV>/redis_password`, which the first `make up` makes; not for env files"
    )
    REDIS_MAX_CONNECTIONS: PositiveInt = Field(100, description="most connections in the pool of a process")
    REDIS_CONNECTION_TIMEOUT: PositiveInt = Field(5, description="seconds to wait for a connection")
    REDIS_SOCKET_TIMEOUT: PositiveInt = Field(10, description="seconds to wait for a reply")
    REDIS_SOCKET_KEEPALIVE: bool = Field(True, description="TCP keepalive on each connection")
    REDIS_SOCKET_KEEPALIVE_OPTIONS: dict[str, PositiveInt] = Field(
        {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3},
        description="JSON: idle seconds before the first probe, seconds between probes, probes before the connection "
        "is closed",
    )
    REDIS_SSL: bool = Field(False, description="use TLS; a URL that begins with `rediss://` uses it, too")
    REDIS_SSL_CERT_REQS: Literal["required", "optional", "none"] = Field(
        "required", description="how the server's certificate is checked"
    )
    REDIS_SSL_CHECK_HOSTNAME: bool = Field(True, description="the certificate must contain the host's name")
    REDIS_SSL_CA_CERTS: Path | None = Field(
        None, description="file with the CA that signed the server's certificate; unset: the secret `redis_ca.crt`"
    )
    REDIS_SSL_CERTFILE: Path | None = Field(
        None, description="file with the client's certificate; unset: the secret `redis_client.crt`"
    )
    REDIS_SSL_KEYFILE: Path | None = Field(
        None, description="file with the client's key; unset: the secret `redis_client.key`"
    )

    WORKER_QUEUES: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, min_length=1, description="queues that the service `worker` serves, with commas; unset: all of them"
    )
    WORKER_PROCESSES: PositiveInt = Field(1, description="processes for each queue in each replica")
    WORKER_SERIALIZER: Format = Field(
        "msgpack",
        description="format of jobs and results: `msgpack`, `json`, or arq's own `pickle`, with which anybody who can "
        "write to Redis can run code in every worker; payloads in another format are refused",
    )
    WORKER_SIGNING_KEY: SecretStr | None = Field(
        None,
        description="a file, `secrets/<ENV>/worker_signing_key`, with one key a line, or empty for none; the first key "
        "signs jobs and results, and payloads signed with any of the keys are accepted; not for env files",
    )
    WORKER_MAX_PAYLOAD_BYTES: int = Field(
        1_048_576,
        ge=4096,
        description="most bytes of a job's payload; a result, which includes the job's arguments, may have twice as "
        "many",
    )
    WORKER_KEEP_RESULT_SECONDS: NonNegativeInt = Field(3600, description="seconds that a result is kept")
    WORKER_MAX_TRIES: PositiveInt = Field(3, description="tries of a job that fails, the first one included")
    WORKER_RETRY_BACKOFF_SECONDS: PositiveInt = Field(
        1,
        description="longest wait before the second try, in seconds; it doubles with each later try. The wait itself "
        "is random, from 0 to that limit",
    )
    WORKER_RETRY_BACKOFF_MAX_SECONDS: PositiveInt = Field(
        300, description="the longest wait before any try, in seconds"
    )
    WORKER_JOB_COMPLETION_WAIT: NonNegativeInt = Field(
        30, description="drain: seconds that running jobs have to finish after SIGTERM"
    )
    WORKER_STOP_GRACE_SECONDS: PositiveInt = Field(
        45,
        description="seconds from SIGTERM until Docker kills the container; at least "
        f"{STOP_MARGIN_S} more than the drain, because then jobs go back to the queue and `shutdown` runs",
    )
    WORKER_LEASE_SECONDS: PositiveInt = Field(
        12, ge=3, description="seconds until other workers claim the jobs of a worker that died"
    )
    WORKER_BLOCKED_LOG_SECONDS: PositiveInt = Field(
        2, description="seconds until the stack of a blocked event loop is logged"
    )
    WORKER_BLOCKED_EXIT_SECONDS: PositiveInt = Field(
        120, description="seconds until the process of a blocked event loop ends; then its container starts again"
    )
    WORKER_HEALTH_CHECK_INTERVAL: PositiveInt = Field(10, description="seconds between two health records of a process")

    @field_validator("WORKER_QUEUES", mode="before")
    @classmethod
    def _split_by_comma(cls, value: Any) -> Any:
        return tuple(q.strip() for q in value.split(",") if q.strip()) if isinstance(value, str) else value

    @field_validator("REDIS_SOCKET_KEEPALIVE_OPTIONS")
    @classmethod
    def _known_by_name(cls, value: dict[str, int]) -> dict[str, int]:
        # Numbers would mean other options: on Linux 1, 2 and 3 are NODELAY, MAXSEG and CORK.
        if unknown := [name for name in value if name not in _KEEPALIVE_OPTIONS]:
            raise ValueError(f"unknown option {', '.join(unknown)}: the names are {', '.join(_KEEPALIVE_OPTIONS)}")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        problems = []
        least = self.WORKER_JOB_COMPLETION_WAIT + STOP_MARGIN_S
        if least > self.WORKER_STOP_GRACE_SECONDS:
            problems.append(
                f"WORKER_JOB_COMPLETION_WAIT={self.WORKER_JOB_COMPLETION_WAIT} must be less than "
                f"WORKER_STOP_GRACE_SECONDS={self.WORKER_STOP_GRACE_SECONDS} by {STOP_MARGIN_S} s. Else Docker kills a "
                "worker before it has given its jobs back and shut down: set "
                f"WORKER_STOP_GRACE_SECONDS={least} or more"
            )
        if self.WORKER_RETRY_BACKOFF_SECONDS > self.WORKER_RETRY_BACKOFF_MAX_SECONDS:
            problems.append(
                f"WORKER_RETRY_BACKOFF_SECONDS={self.WORKER_RETRY_BACKOFF_SECONDS} must not be more than "
                f"WORKER_RETRY_BACKOFF_MAX_SECONDS={self.WORKER_RETRY_BACKOFF_MAX_SECONDS}"
            )
        if self.WORKER_BLOCKED_LOG_SECONDS >= self.WORKER_BLOCKED_EXIT_SECONDS:
            problems.append(
                f"WORKER_BLOCKED_LOG_SECONDS={self.WORKER_BLOCKED_LOG_SECONDS} must be less than "
                f"WORKER_BLOCKED_EXIT_SECONDS={self.WORKER_BLOCKED_EXIT_SECONDS}. Else the process ends before the "
                "stack is logged"
            )
        if any(len(key) < _KEY_CHARACTERS for key in self._signing_keys):
            problems.append(f"WORKER_SIGNING_KEY: each line is a key and needs at least {_KEY_CHARACTERS} characters")
        for name in ("REDIS_SSL_CA_CERTS", "REDIS_SSL_CERTFILE", "REDIS_SSL_KEYFILE"):
            if (file := getattr(self, name)) and not file.is_file():
                problems.append(f"{name}={file}: there is no such file")
        try:
            _ = self.redis_settings
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def secrets(self) -> Path | None:
        """The folder that has a file for each secret, or None."""
        folder = self.model_config.get("secrets_dir")
        return folder if isinstance(folder, Path) else None

    def _file(self, given: Path | None, secret: str) -> str | None:
        """Return the path in a setting, or else the secret of this name, or None if neither exists."""
        if given is None and self.secrets and (self.secrets / secret).is_file():  # without TLS the secret is /dev/null
            given = self.secrets / secret
        return str(given) if given else None

    @property
    def redis_settings(self) -> RedisSettings:
        """The address of Redis and the login, in arq's form. Raises ``ValueError`` if the URL is not valid.

        A user and a password in the URL override ``REDIS_USERNAME`` and ``REDIS_PASSWORD``. The database is
        ``REDIS_DB``, and a URL that names another one is an error.
        """
        # Not RedisSettings.from_dsn: it leaves a password percent-encoded, drops TLS options, and fails on a slash at
        # the end.
        name, text = "REDIS_URL", self.REDIS_URL
        if not IN_CONTAINER and self.REDIS_URL_LOCAL:
            name, text = "REDIS_URL_LOCAL", self.REDIS_URL_LOCAL
        elif not IN_CONTAINER and self.REDIS_PORT:
            name, text = "REDIS_PORT", f"redis://localhost:{self.REDIS_PORT}"
        url = urlsplit(text)
        if url.scheme not in ("redis", "rediss", "unix") or url.query or url.fragment:
            raise ValueError(
                f"{name} must begin with redis://, rediss:// or unix://, and must have no query: set variables instead"
            )
        database = url.path.strip("/") if url.scheme != "unix" else ""
        if database and database != str(self.REDIS_DB):
            raise ValueError(f"{name} names database {database}, but REDIS_DB={self.REDIS_DB}: keep one of the two")
        try:
            port = url.port or 6379
        except ValueError:
            raise ValueError(f"the port in {name} is not a number from 1 to 65535") from None
        password = self.REDIS_PASSWORD.get_secret_value() if self.REDIS_PASSWORD else None
        return RedisSettings(
            host=url.hostname or "localhost",
            port=port,
            unix_socket_path=url.path if url.scheme == "unix" else None,
            database=self.REDIS_DB,
            username=unquote(url.username) if url.username else self.REDIS_USERNAME,
            password=unquote(url.password) if url.password else password,
            ssl=self.REDIS_SSL or url.scheme == "rediss",
            ssl_cert_reqs=self.REDIS_SSL_CERT_REQS,
            ssl_check_hostname=self.REDIS_SSL_CHECK_HOSTNAME and self.REDIS_SSL_CERT_REQS != "none",
            ssl_ca_certs=self._file(self.REDIS_SSL_CA_CERTS, "redis_ca.crt"),
            ssl_certfile=self._file(self.REDIS_SSL_CERTFILE, "redis_client.crt"),
            ssl_keyfile=self._file(self.REDIS_SSL_KEYFILE, "redis_client.key"),
            conn_timeout=self.REDIS_CONNECTION_TIMEOUT,
            max_connections=self.REDIS_MAX_CONNECTIONS,
        )

    @property
    def serializer(self) -> Serializer:
        """The serializer that producers, workers and the CLI use for jobs and results."""
        return Serializer(
            self.WORKER_SERIALIZER, signing_keys=self._signing_keys, max_bytes=self.WORKER_MAX_PAYLOAD_BYTES
        )

    @property
    def _signing_keys(self) -> list[str]:
        return self.WORKER_SIGNING_KEY.get_secret_value().split() if self.WORKER_SIGNING_KEY else []

    @property
    def keepalive_options(self) -> dict[int, int]:
        """``REDIS_SOCKET_KEEPALIVE_OPTIONS`` with the numbers of this platform. Options that it lacks are left out."""
        options = self.REDIS_SOCKET_KEEPALIVE_OPTIONS.items()
        return {getattr(socket, name): value for name, value in options if hasattr(socket, name)}

    def overrides(self, queue: str) -> QueueOverrides:
        """Return the values of the variables ``WORKER_<QUEUE>_…``. Raises ``ValidationError`` if one is not valid.

        :param queue: the short name of the queue
        """
        return QueueOverrides(
            _env_prefix=f"WORKER_{queue.upper()}_",
            _env_file=self.model_config.get("env_file"),
            _secrets_dir=self.secrets,
        )
