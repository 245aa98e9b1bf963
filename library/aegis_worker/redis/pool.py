"""The one place that connects to Redis."""

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
    """Reads the password anew for each connection, so that it can be changed while workers run."""

    def __init__(self, username: str | None, file: Path) -> None:
        self._username = username
        self._file = file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._file.read_text().strip()
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def create_pool(config: Settings, *, queue_name: str | None = None) -> ArqRedis:
    """Return a client that honours every ``REDIS_…`` setting, and writes jobs as the settings say; it connects when
    first used.

    The pool blocks when all its connections are taken, for up to ``REDIS_CONNECTION_TIMEOUT`` seconds: arq's own
    raises "Too many connections" at once, which ends its worker. ``queue_name`` is where ``enqueue_job`` sends
    jobs that name no queue.
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
    if file and file.exists() and file.read_text().strip() == where.password:  # not one out of REDIS_URL or a variable
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
    """Say in one line, without a secret, what went wrong between us and Redis and what to look at."""
    where = config.redis_settings
    server = where.unix_socket_path or f"{where.host}:{where.port}"
    if isinstance(error, AuthenticationError):
        return f"Redis at {server} refuses the login: check REDIS_USERNAME and secrets/<ENV>/redis_password ({error})"
    if isinstance(error, NoPermissionError):
        return f"Redis at {server} does not let the user {where.username or 'default'} do this: {error}"
    if isinstance(error, RedisError | OSError) and (cause := tls.find_error(error)):
        return f"Redis at {server}: {tls.explain(cause, str(where.host))} ({cause})"
    if isinstance(error, OutOfMemoryError):
        return f"Redis at {server} is full: raise REDIS_MAXMEMORY and REDIS_MEMORY_LIMIT, or empty a queue ({error})"
    if isinstance(error, ResponseError):
        return f"Redis at {server} refuses: {error}"
    if isinstance(error, RedisError | OSError):
        return f"Redis at {server} is out of reach{' by TLS' if where.ssl else ''}: {error or type(error).__name__}"
    return str(error)


async def check(pool: ArqRedis) -> None:
    """Make sure that Redis answers and keeps what it is given.

    Raises ``RedisError`` or ``OSError`` where it does not answer, ``ValueError`` where it would evict queued jobs
    under memory pressure: every policy but ``noeviction`` does, ``volatile-*`` too, as payloads have a time to live.
    """
    memory = await pool.info("memory")
    policy = memory["maxmemory_policy"]
    if memory["maxmemory"] and policy != "noeviction":
        raise ValueError(f"Redis has maxmemory-policy {policy}, which drops queued jobs: set it to noeviction")
