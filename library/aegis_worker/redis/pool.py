"""Makes the pools that connect to Redis, and explains their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool, Connection, UnixDomainSocketConnection
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, RedisError, ResponseError

from aegis_worker.redis import tls
from aegis_worker.settings import Settings


class FileLogin(CredentialProvider):
    """Reads the password from its file for each connection, so that it can be changed while workers run."""

    def __init__(self, username: str | None, file: Path) -> None:
        self._username = username
        self._file = file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._file.read_text().strip()
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def create_pool(config: Settings, *, queue_name: str | None = None) -> ArqRedis:
    """Return a client that uses the ``REDIS_…`` settings and the project's serializer. It connects when it is used.

    When all connections of the pool are in use, a call waits for up to ``REDIS_CONNECTION_TIMEOUT`` seconds. The pool
    of arq raises "Too many connections" at once, which ends a worker.

    :param queue_name: the queue of jobs that name none, such as ``arq:queue:media``
    """
    where = config.redis_settings
    options: dict[str, Any] = {
        "connection_class": Connection,
        "db": where.database,
        "socket_timeout": config.REDIS_SOCKET_TIMEOUT,
        "socket_connect_timeout": config.REDIS_CONNECTION_TIMEOUT,
        "health_check_interval": config.REDIS_SOCKET_TIMEOUT,
        "max_connections": where.max_connections,
        "timeout": config.REDIS_CONNECTION_TIMEOUT,
    }
    file = config.secrets / "redis_password" if config.secrets else None
    if (
        file and file.exists() and file.read_text().strip() == where.password
    ):  # else it comes from REDIS_URL or a variable
        options["credential_provider"] = FileLogin(where.username, file)
    else:
        options |= {"username": where.username, "password": where.password}
    if where.unix_socket_path:
        options |= {"connection_class": UnixDomainSocketConnection, "path": where.unix_socket_path}
        del options["socket_connect_timeout"]
    else:
        options |= {
            "host": where.host,
            "port": where.port,
            "socket_keepalive": config.REDIS_SOCKET_KEEPALIVE,
            "socket_keepalive_options": config.keepalive_options,
        }
    if where.ssl:
        options |= {"connection_class": tls.TLSConnection, "contexts": tls.Contexts(where)}
    serializer = config.serializer
    pool = ArqRedis(
        BlockingConnectionPool(**options), job_serializer=serializer.dumps, job_deserializer=serializer.loads
    )
    if queue_name:
        pool.default_queue_name = queue_name
    return pool


def explain(error: Exception, config: Settings) -> str:
    """Return one line, without a secret, that says what went wrong with Redis and what to check."""
    where = config.redis_settings
    server = where.unix_socket_path or f"{where.host}:{where.port}"
    if isinstance(error, AuthenticationError):
        return f"Redis at {server} refuses the login: check REDIS_USERNAME and secrets/<ENV>/redis_password ({error})"
    if isinstance(error, NoPermissionError):
        return f"Redis at {server} does not permit this to the user {where.username or 'default'}: {error}"
    if isinstance(error, RedisError | OSError) and (cause := tls.find_error(error)):
        return f"Redis at {server}: {tls.explain(cause, str(where.host))} ({cause})"
    if isinstance(error, OutOfMemoryError):
        return f"Redis at {server} is full: raise REDIS_MAXMEMORY and REDIS_MEMORY_LIMIT, or empty a queue ({error})"
    if isinstance(error, ResponseError):
        return f"Redis at {server} refuses this: {error}"
    if isinstance(error, RedisError | OSError):
        by_tls = " by TLS" if where.ssl else ""
        return f"Redis at {server} cannot be reached{by_tls}: {error or type(error).__name__}"
    return str(error)


async def check(pool: ArqRedis) -> None:
    """Check that Redis answers, and that it does not drop jobs when its memory is full.

    Raises ``RedisError`` or ``OSError`` if it does not answer, ``ValueError`` if it has another policy than
    ``noeviction``. The policies ``volatile-*`` drop jobs, too, because payloads have a time to live.
    """
    memory = await pool.info("memory")
    policy = memory["maxmemory_policy"]
    if memory["maxmemory"] and policy != "noeviction":
        raise ValueError(f"Redis has maxmemory-policy {policy}, which drops queued jobs: set it to noeviction")
