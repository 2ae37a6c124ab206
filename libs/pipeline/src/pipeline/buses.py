"""Chooses the event bus adapter that the settings ask for."""

from __future__ import annotations

from datetime import timedelta

from pipeline.bus import Bus
from pipeline.prefixed_bus import PrefixedBus
from pipeline.settings import BusSettings
from pipeline.sql_bus import SqlBus


def make_bus(settings: BusSettings) -> Bus:
    """The bus of `bus_url`; nothing is connected yet."""
    bus = _bus_of_url(settings)
    return PrefixedBus(bus, settings.bus_topic_prefix) if settings.bus_topic_prefix else bus


def _bus_of_url(settings: BusSettings) -> Bus:
    url = settings.bus_url
    if url.startswith("kafka://"):
        from pipeline.kafka_bus import KafkaBus  # the embedded mode needs no Kafka client in memory

        return KafkaBus(settings)
    return SqlBus(
        url,
        partitions=settings.bus_partitions,
        session_timeout_s=settings.bus_session_timeout_s,
        retention=timedelta(days=settings.bus_retention_days),
    )
