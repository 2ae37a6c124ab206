"""The Celery side of the contract between dispatcher and inference_worker: names and transport options.

Celery itself is not imported here. Each option carries its reason; times were measured with Celery 5.7 on Redis 7.
"""

from __future__ import annotations

from typing import Any, Literal

Priority = Literal["stat", "routine"]

TASK_GENERATE_REPORT = "inference_worker.generate_report"
"""Arguments: `job_id` (UUID text), `attempt` (int >= 1), `manifest_ref` (object key). No identifiers of people."""

QUEUES: dict[Priority, str] = {"stat": "reports.stat", "routine": "reports.routine"}
"""In the order in which they are served."""


def celery_config(broker_url: str, visibility_timeout_s: int) -> dict[str, Any]:
    """The configuration both sides share; `broker_url` is `redis://...` or `redis+socket:///path`."""
    return {
        "broker_url": broker_url,
        # Results travel as events; a result backend would only be one more thing to lose.
        "task_ignore_result": True,
        # The task leaves the queue when its event is on the bus, not when it starts.
        "task_acks_late": True,
        # For the prefork pool; the thread pool has no child to lose, the visibility timeout covers it.
        "task_reject_on_worker_lost": True,
        # A reserved task waits behind a running one although another worker is idle; the counts also drift over days.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "broker_connection_retry_on_startup": True,
        # Off, a broker outage while all slots are busy wedges the worker for minutes after the broker is back.
        "worker_enable_remote_control": True,
        # A dead broker fails a publish in 0.1 s; the outbox tries again.
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1},
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": QUEUES["routine"],
        "broker_transport_options": {
            # Counted from delivery. Shorter than a task and the task starts again and again.
            "visibility_timeout": visibility_timeout_s,
            # How often the unacknowledged are looked through; the default brings a dead worker's task back after 100 s.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # A sweeper that was killed leaves its lock behind; the default blocks redelivery for 300 s.
            "unacked_mutex_expire": 10,
            # A node that is gone without a word is left within 22 s. Where the worker blocks (BRPOP) kombu itself looks
            # for an answer at the interval; an idle worker gets one every second. With TCP's own patience everything
            # would stand still for a quarter of an hour.
            "socket_connect_timeout": 5,
            "socket_timeout": 10,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # Without it the two queues alternate; with it stat is strictly first.
            "queue_order_strategy": "priority",
        },
    }
