"""The event bus on Apache Kafka, through kafka-python."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import (
    CommitFailedError,
    GroupIdNotFoundError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    TopicAlreadyExistsError,
    UnknownMemberIdError,
)
from kafka.protocol.consumer import OffsetSpec

from pipeline.bus import Message, Record
from pipeline.errors import BusUnavailable, MessageTooLarge
from pipeline.events import DEAD_LETTER_SUFFIX, MAX_EVENT_BYTES
from pipeline.kafka_client import MAX_LETTER_BYTES, TOO_LARGE, build, explain, translated
from pipeline.settings import BusSettings
from pipeline.telemetry import EVENTS_PUBLISHED

log = logging.getLogger(__name__)

_PUBLISH_TIMEOUT_S = 15.0
_LIMIT = "max.message.bytes"
_COMMIT_TIMEOUT_MS = 5_000
_PATIENCE_S, _PATIENCE_MAX_S = 5.0, 300.0


class KafkaBus:
    """The `Bus` on Kafka; clients connect when they are first used."""

    def __init__(self, settings: BusSettings, *, patience_s: float = _PATIENCE_S) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._admin: Any = None
        self._limits_seen: set[str] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _administration(self) -> Any:
        with self._lock:
            if self._admin is None:
                self._admin = build(KafkaAdminClient, self._settings)
            try:
                with translated(self._settings):
                    yield self._admin
            except BusUnavailable:
                # Its view of the cluster may be stale after an outage: start afresh the next time.
                broken, self._admin = self._admin, None
                broken.close()
                raise

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """Create missing topics; needs no right to create when none is missing."""
        with self._administration() as admin:
            present = set(admin.list_topics())
            self._warn_of_limits(admin, present.intersection(topics))
            missing = [topic for topic in dict.fromkeys(topics) if topic not in present]
            if not missing:
                return
            wanted = {
                topic: {
                    "num_partitions": self._settings.bus_partitions,
                    "replication_factor": self._settings.bus_replication,
                    "configs": {_LIMIT: str(_largest(topic))},
                }
                for topic in missing
            }
            # A service that starts beside this one may have created them in between.
            with contextlib.suppress(TopicAlreadyExistsError):
                admin.create_topics(wanted)
            admin.wait_for_topics(missing)

    def _warn_of_limits(self, admin: Any, topics: set[str]) -> None:
        """Topics that others made may take less than an event can be; one without the right to ask is not told."""
        unseen = sorted(topics - self._limits_seen)
        self._limits_seen |= topics
        if not unseen:
            return
        asked = [ConfigResource("TOPIC", topic, [_LIMIT]) for topic in unseen]
        for topic, configs in admin.describe_configs(asked, config_filter="all").get("topic", {}).items():
            limit = int(configs.get(_LIMIT, {}).get("value") or _largest(topic))
            if limit < _largest(topic):
                log.warning(
                    "topic takes smaller events than the pipeline may write: raise its max.message.bytes",
                    extra={"topic": topic, "limit": limit, "wanted": _largest(topic)},
                )

    def producer(self) -> KafkaBusProducer:
        """A new producer; connects at its first publish."""
        return KafkaBusProducer(self, self._settings)

    def consumer(self, group: str, topics: Sequence[str]) -> KafkaBusConsumer:
        """A new member; connects and joins at its first poll."""
        return KafkaBusConsumer(self._settings, group, topics, self._patience_s)

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """Log ends minus committed offsets (or log starts where nothing is committed)."""
        with self._administration() as admin:
            places = [
                TopicPartition(topic["name"], partition["partition_index"])
                for topic in admin.describe_topics(list(topics))
                for partition in topic["partitions"]
            ]
            if not places:
                return 0
            ends = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
            starts = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
            try:
                committed = admin.list_group_offsets({group: places}).get(group, {})
            except GroupIdNotFoundError:
                committed = {}
            return sum(
                ends[place].offset - max(starts[place].offset, committed[place].offset if place in committed else -1)
                for place in places
            )

    def ping(self) -> None:
        """Ask for the cluster."""
        with self._administration() as admin:
            admin.describe_cluster()

    def close(self) -> None:
        """Close the admin client."""
        with self._lock:
            admin, self._admin = self._admin, None
            if admin is not None:
                admin.close()


class KafkaBusProducer:
    """Idempotent, acknowledged by all in-sync replicas. Thread-safe."""

    def __init__(self, bus: KafkaBus, settings: BusSettings) -> None:
        self._bus = bus
        self._settings = settings
        self._lock = threading.Lock()
        self._client: Any = None
        self._known: set[str] = set()

    def publish(self, messages: Sequence[Message]) -> None:
        """Send all, then wait for all acknowledgements (15 s at most)."""
        if not messages:
            return
        client = self._connected({message.topic for message in messages})
        deadline = time.monotonic() + _PUBLISH_TIMEOUT_S
        try:
            futures = [
                client.send(
                    message.topic,
                    key=message.key.encode(),
                    value=message.value,
                    headers=[(name, text.encode()) for name, text in message.headers.items()],
                )
                for message in messages
            ]
            for future in futures:
                future.get(timeout=max(0.001, deadline - time.monotonic()))
        except KafkaError as error:
            self._abandon(client)
            if isinstance(error, TOO_LARGE):
                raise MessageTooLarge(explain(error, self._settings)) from error
            raise BusUnavailable(explain(error, self._settings)) from error
        for message in messages:
            EVENTS_PUBLISHED.labels(topic=message.topic).inc()

    def _connected(self, topics: set[str]) -> Any:
        with self._lock:
            if topics - self._known:
                self._bus.ensure_topics(sorted(topics))
                self._known |= topics
            if self._client is None:
                self._client = build(
                    KafkaProducer,
                    self._settings,
                    acks="all",
                    enable_idempotence=True,
                    linger_ms=5,
                    batch_size=131_072,
                    max_request_size=MAX_LETTER_BYTES,
                    max_block_ms=10_000,
                    # Longer than anybody waits above: a batch must not expire by itself while one behind it is sent.
                    delivery_timeout_ms=120_000,
                    allow_auto_create_topics=False,
                )
            return self._client

    def _abandon(self, client: Any) -> None:
        """Drop what was not sent: published again from the start, events of one key keep their order."""
        with self._lock:
            if self._client is client:
                self._client = None
        # `close(timeout=0)` gives up before closing while records are pending; this is the part of it that is needed.
        client._sender.force_close()
        client._sender.join(timeout=10)
        client._unregister_cleanup()
        client._closed = True

    def close(self) -> None:
        """Every publish has been waited for, so nothing is pending."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close(timeout=5)


class KafkaBusConsumer:
    """One group member on a `KafkaConsumer`, which is built anew when it hangs."""

    def __init__(self, settings: BusSettings, group: str, topics: Sequence[str], patience_s: float) -> None:
        self._settings = settings
        self._group = group
        self._topics = list(topics)
        self._first_patience_s = patience_s
        self._patience_s = patience_s
        self._client: Any = None
        self._empty_since = 0.0
        self._rebuilt_at = 0.0

    def poll(self, timeout_s: float) -> list[Record]:
        """Up to 200 records. While brokers are away after the first contact it returns nothing."""
        client = self._connected()
        with translated(self._settings):
            batches = client.poll(timeout_ms=max(1, int(timeout_s * 1000)))
        self._watch(client)
        return [
            Record(
                place.topic,
                place.partition,
                record.offset,
                (record.key or b"").decode(errors="replace"),
                record.value or b"",
                {name: (value or b"").decode(errors="replace") for name, value in record.headers},
            )
            for place, batch in batches.items()
            for record in batch
        ]

    def _connected(self) -> Any:
        if self._client is None:
            session_ms = int(self._settings.bus_session_timeout_s * 1000)
            client = build(
                KafkaConsumer,
                self._settings,
                group_id=self._group,
                # With `latest`, a member that joins again before its first commit skips records.
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                session_timeout_ms=session_ms,
                heartbeat_interval_ms=session_ms // 3,
                max_poll_records=200,
                allow_auto_create_topics=False,
            )
            try:
                with translated(self._settings):
                    _warm_up(client, self._topics)
                    client.subscribe(self._topics)
            except BusUnavailable:
                client.close(autocommit=False, timeout_ms=0)
                raise
            self._client = client
            self._empty_since = time.monotonic()
        return self._client

    def _watch(self, client: Any) -> None:
        """Build the consumer anew when it has had no partition for too long.

        It may hang (a poll that timed out in the middle of the second join loses the result), it may not know of a
        topic that was created later, or there are more members than partitions. The last is no fault, and joining
        again disturbs the others, one of whom may be the spare one then: wait twice as long each time, and begin with
        short waits again only after a long time of peace.
        """
        now = time.monotonic()
        if client.assignment():
            self._empty_since = now
            if now - self._rebuilt_at > _PATIENCE_MAX_S:
                self._patience_s = self._first_patience_s
        elif now - self._empty_since > self._patience_s:
            log.warning("no partition assigned: joining anew", extra={"group": self._group})
            self._patience_s = min(self._patience_s * 2, _PATIENCE_MAX_S)
            self._rebuilt_at = now
            self.close()

    def commit(self, record: Record) -> None:
        """Synchronously; left out when the group has moved on."""
        place = TopicPartition(record.topic, record.partition)
        if self._client is None or place not in self._client.assignment():
            return
        with translated(self._settings):
            try:
                offsets = {place: OffsetAndMetadata(record.offset + 1, "", -1)}
                self._client.commit(offsets, timeout_ms=_COMMIT_TIMEOUT_MS)
            except (CommitFailedError, RebalanceInProgressError, IllegalGenerationError, UnknownMemberIdError):
                # The group rebalances: whoever owns the partition next sees the record again.
                log.info("commit left out: the group rebalances", extra={"group": self._group})

    def rewind(self, record: Record) -> None:
        """Seek, if the partition is still assigned."""
        place = TopicPartition(record.topic, record.partition)
        if self._client is not None and place in self._client.assignment():
            self._client.seek(place, record.offset)

    def assignment(self) -> frozenset[tuple[str, int]]:
        """What the group gave this member."""
        if self._client is None:
            return frozenset()
        return frozenset((place.topic, place.partition) for place in self._client.assignment() or ())

    def close(self) -> None:
        """Leave the group."""
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close(autocommit=False, timeout_ms=3_000)
            except KafkaError as error:
                # The broker is away: it drops the member when the session runs out.
                log.warning("left the group without saying so", extra={"error": type(error).__name__})


def _largest(topic: str) -> int:
    return MAX_LETTER_BYTES if topic.endswith(DEAD_LETTER_SUFFIX) else MAX_EVENT_BYTES


def _warm_up(client: Any, topics: Sequence[str]) -> None:
    """Fetch the topics' metadata before the first join; a join without it may hang for ever (see `_watch`)."""
    for topic in topics:
        client.partitions_for_topic(topic)
