"""How this package builds kafka-python clients: options with reasons, and errors in words that name a setting."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    InvalidReplicationFactorError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient

from pipeline.errors import BusUnavailable
from pipeline.events import MAX_EVENT_BYTES
from pipeline.settings import BusSettings

MAX_LETTER_BYTES = 2 * MAX_EVENT_BYTES
"""Largest dead letter: it carries the event in base64."""
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
"""Told of one message: the client divides a batch until the message that is too large stands alone."""

_KNOCK_S = 2.0
_CREDENTIALS = "check ECHO_KAFKA_USERNAME, ECHO_KAFKA_PASSWORD and ECHO_KAFKA_SASL_MECHANISM"


def addresses(settings: BusSettings) -> list[str]:
    """`host:port` of each broker in `bus_url`."""
    hosts = settings.bus_url.removeprefix("kafka://").strip("/").split(",")
    return [host if ":" in host else f"{host}:9092" for host in hosts]


def common_options(settings: BusSettings) -> dict[str, Any]:
    """Options that producers, consumers and the admin client share."""
    options: dict[str, Any] = {
        "bootstrap_servers": addresses(settings),
        "security_protocol": settings.kafka_security_protocol,
        # The default of 30 s lets clients miss a broker that is back for half a minute.
        "reconnect_backoff_max_ms": 500,
        "request_timeout_ms": 10_000,
        "bootstrap_timeout_ms": 5_000,
        # Notices partitions that an administrator adds, within this time.
        "metadata_max_age_ms": 30_000,
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username or ""
        password = settings.kafka_password
        options["sasl_plain_password"] = password.get_secret_value() if password else ""
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    return options


def _ssl_context(settings: BusSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.kafka_ca_file)
    except OSError as error:
        raise BusUnavailable(f"ECHO_KAFKA_CA_FILE cannot be used: {type(error).__name__}") from error


def build(factory: Callable[..., Any], settings: BusSettings, **options: Any) -> Any:
    """A connected client. Raises `BusUnavailable` that says what to check."""
    # Knocking first answers at once where the library would try for seconds (and leave a socket open for each try).
    if not any(_answers(address) for address in addresses(settings)):
        raise BusUnavailable(_nobody(settings))
    made: list[Any] = []

    def client(**configs: Any) -> Any:
        made.append(KafkaNetClient(**configs))
        return made[-1]

    try:
        return factory(kafka_client=client, **common_options(settings), **options)
    except Exception as error:
        for part in made:  # a constructor that fails leaves its network thread running
            part.close()
        if isinstance(error, KafkaError):
            raise BusUnavailable(explain(error, settings)) from error
        raise


@contextlib.contextmanager
def translated(settings: BusSettings) -> Iterator[None]:
    """Every error of the client library becomes `BusUnavailable` with a text for an administrator."""
    try:
        yield
    except KafkaError as error:
        raise BusUnavailable(explain(error, settings)) from error


def explain(error: KafkaError, settings: BusSettings) -> str:
    """What went wrong and which setting has to do with it; never a password, never an event."""
    if isinstance(error, SaslAuthenticationFailedError | UnsupportedSaslMechanismError | IllegalSaslStateError):
        return f"the Kafka broker refused the login ({type(error).__name__}): {_CREDENTIALS}"
    if isinstance(error, AuthorizationError):
        return f"the Kafka user {settings.kafka_username!r} lacks a right: {type(error).__name__}"
    if isinstance(error, TOO_LARGE):
        return f"the event is larger than the topic's max.message.bytes ({type(error).__name__})"
    if isinstance(error, InvalidReplicationFactorError):
        return f"ECHO_BUS_REPLICATION={settings.bus_replication} is more than there are Kafka brokers"
    return _diagnosis(settings) or f"Kafka at {', '.join(addresses(settings))} does not answer: {type(error).__name__}"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, ValueError):
        return False
    return True


def _nobody(settings: BusSettings) -> str:
    return f"nothing answers at {', '.join(addresses(settings))}: check ECHO_BUS_URL and the Kafka brokers"


def _diagnosis(settings: BusSettings) -> str | None:
    """The library reports a wrong port, CA, protocol and password all as a time-out: look for the cause oneself."""
    where = ", ".join(addresses(settings))
    protocol = settings.kafka_security_protocol
    reached = False
    for address in addresses(settings):
        host, port = address.rsplit(":", 1)
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S) as plain:
                reached = True
                if protocol.endswith("SSL"):
                    with _ssl_context(settings).wrap_socket(plain, server_hostname=host.strip("[]")):
                        pass
        except ssl.SSLCertVerificationError as error:
            why = error.verify_message
            return f"the certificate of Kafka at {address} is not trusted ({why}): check ECHO_KAFKA_CA_FILE"
        except (ssl.SSLError, ConnectionResetError) as error:
            if reached:
                what = type(error).__name__
                return f"Kafka at {address} does not speak TLS ({what}): check ECHO_KAFKA_SECURITY_PROTOCOL={protocol}"
        except (OSError, ValueError):
            continue
    if not reached:
        return _nobody(settings)
    if protocol.startswith("SASL"):
        return f"Kafka at {where} can be reached but gives no answer: {_CREDENTIALS}"
    return None
