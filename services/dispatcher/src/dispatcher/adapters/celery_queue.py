"""Celery as the dispatcher uses it: to send tasks and to count what the broker holds."""

from __future__ import annotations

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dispatcher.ports import QueueUnavailable
from pipeline.taskqueue import QUEUES, TASK_GENERATE_REPORT, Priority, celery_config


class CeleryQueue:
    """`ports.TaskQueue` on a Redis broker."""

    def __init__(self, broker_url: str, visibility_timeout_s: int) -> None:
        self._app = Celery("dispatcher", set_as_current=False)
        self._app.conf.update(celery_config(broker_url, visibility_timeout_s))

    def enqueue(self, job_id: str, attempt: int, manifest_ref: str, priority: Priority) -> None:
        """Send the task; its id names the attempt."""
        try:
            self._app.send_task(
                TASK_GENERATE_REPORT,
                kwargs={"job_id": job_id, "attempt": attempt, "manifest_ref": manifest_ref},
                queue=QUEUES[priority],
                task_id=f"{job_id}-{attempt}",
            )
        except (OperationalError, RedisError, OSError) as error:
            raise QueueUnavailable("the task could not be handed over") from error

    def held(self) -> int:
        """Lengths of the queues and of the hash in which kombu keeps what was delivered and not acknowledged."""
        try:
            with self._app.connection_for_read() as connection:
                channel = connection.default_channel
                waiting = sum(int(channel._size(name)) for name in QUEUES.values())
                return waiting + int(channel.client.hlen(channel.unacked_key))
        except (OperationalError, RedisError, OSError) as error:
            raise QueueUnavailable("the broker does not answer") from error

    def ping(self) -> None:
        """Ask the server itself."""
        try:
            with self._app.connection_for_read() as connection:
                connection.default_channel.client.ping()
        except (OperationalError, RedisError, OSError) as error:
            raise QueueUnavailable("the broker does not answer") from error

    def close(self) -> None:
        """Close pooled connections."""
        self._app.close()
