"""Room of one's own on a shared server, given back afterwards. Several test runs may go on at the same time.

The clients are imported where they are used: every run loads this file, also one of unit tests only.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator

from servers import env

REDIS_DATABASES = 256
"""As scripts/services/servers.sh configures it."""
LEASE_S = 3600
"""A Redis database of a test run that was killed is free again after this long."""


def drop_database(name: str, url: str | None = None) -> None:
    """Of the server at `url`, even if a connection was left open."""
    import psycopg
    from psycopg import sql

    maintenance = (url or env.postgres_url()).replace("postgresql+psycopg://", "postgresql://", 1)
    deadline = time.monotonic() + 120
    with psycopg.connect(maintenance, autocommit=True) as connection:
        while True:
            try:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
                return
            # Autovacuum is in it, which only a superuser may end; or what was ended takes more than five seconds to go.
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectInUse):
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)


@contextlib.contextmanager
def postgres_database() -> Iterator[str]:
    """A new, empty database; dropped afterwards."""
    import psycopg
    from psycopg import sql

    base, _, _ = env.postgres_url().rpartition("/")
    name = f"test_{uuid.uuid4().hex[:16]}"
    maintenance = env.postgres_url().replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield f"{base}/{name}"
    finally:
        drop_database(name)


@contextlib.contextmanager
def redis_database() -> Iterator[str]:
    """A database number that nobody else uses, emptied before and after. Database 0 keeps who has which one."""
    import redis

    server = redis.Redis.from_url(f"{env.redis_url()}/0")
    mine = f"{os.getpid()}-{uuid.uuid4().hex}"
    number = next((n for n in range(1, REDIS_DATABASES) if server.set(f"lease:{n}", mine, nx=True, ex=LEASE_S)), None)
    if number is None:
        raise RuntimeError("every Redis database is in use by a test")
    url = f"{env.redis_url()}/{number}"
    try:
        with redis.Redis.from_url(url) as database:
            database.flushdb()
            yield url
            database.flushdb()
    finally:
        server.delete(f"lease:{number}")
        server.close()


@contextlib.contextmanager
def kafka_topics_removed(bootstrap: str) -> Iterator[str]:
    """A prefix for topic names; the topics that start with it are deleted afterwards."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    prefix = f"t{uuid.uuid4().hex[:10]}."

    def failure() -> str | None:
        """What kept the topics from being removed."""
        try:
            with contextlib.closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
                topics = [topic for topic in admin.list_topics() if topic.startswith(prefix)]
                if topics:
                    admin.delete_topics(topics)
        except KafkaError as error:
            return f"{type(error).__name__}: {error}"
        return None

    try:
        yield prefix
    finally:
        deadline = time.monotonic() + 120
        while (why := failure()) is not None:  # a busy broker does not answer, or lists for a moment what is gone
            assert time.monotonic() < deadline, why
            time.sleep(1)
