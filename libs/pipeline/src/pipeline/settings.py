"""Settings: environment variables, read once at start, validated, frozen, printed with secrets masked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

ENV_PREFIX = "ECHO_"
S = TypeVar("S", bound="CommonSettings")
_DATABASES = ("sqlite:///", "postgresql+psycopg://")


class _EchoSettings(BaseSettings):
    # The base of all mixins: with several bases pydantic takes the configuration of the last one.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore", hide_input_in_errors=False)


class CommonSettings(_EchoSettings):
    """What every service has. The environment variable of a field is `ECHO_` + its name in capitals."""

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")
    log_identifiers: bool = Field(
        False, description="Write study UIDs and accession numbers to the log as they are instead of hashed."
    )
    http_host: str = Field("0.0.0.0", description="Address of the health and metrics port.")
    http_port: int = Field(
        8080, ge=0, le=65535, description="Port of `/healthz`, `/readyz`, `/metrics`; 0 takes a free one."
    )


class DatabaseSettings(_EchoSettings):
    """Mixed into services that keep state."""

    database_url: SecretStr = Field(
        description="The service's own database, as SQLAlchemy writes it: "
        "`postgresql+psycopg://user:password@host/name` or `sqlite:////path/file.sqlite3`."
    )

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr) -> SecretStr:
        _one_of_schemes(value.get_secret_value(), *_DATABASES)
        return value


class BusSettings(_EchoSettings):
    """Mixed into services that publish or consume events."""

    bus_url: str = Field(
        description="The event bus: `kafka://host:port[,host:port...]`, or a database for the embedded log: "
        "`sqlite:////path/bus.sqlite3`, `postgresql+psycopg://...`."
    )
    bus_topic_prefix: str = Field(
        "",
        pattern=r"^[a-zA-Z0-9._-]{0,100}$",
        description="Put before every topic and consumer group, so that several systems can share one Kafka cluster.",
    )
    bus_partitions: int = Field(6, ge=1, le=512, description="Partitions of topics that this service creates.")
    bus_replication: int = Field(
        1, ge=1, le=7, description="Replication factor of Kafka topics that this service creates."
    )
    bus_session_timeout_s: float = Field(
        6.0, ge=1, le=300, description="A group member silent for this long loses its partitions."
    )
    bus_retention_days: int = Field(
        14,
        ge=1,
        le=3650,
        description="The embedded log deletes events that are older and that every group has consumed "
        "(Kafka has its own setting).",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How brokers are spoken to."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-256", description="SASL mechanism, with a SASL security protocol."
    )
    kafka_username: str | None = Field(None, description="SASL user.")
    kafka_password: SecretStr | None = Field(None, description="SASL password.")
    kafka_ca_file: str | None = Field(
        None, description="PEM file of the authority that signed the brokers' certificates."
    )

    @field_validator("bus_url")
    @classmethod
    def _known_bus(cls, value: str) -> str:
        return _one_of_schemes(value, "kafka://", *_DATABASES)


class ObjectStoreSettings(_EchoSettings):
    """Mixed into services that read or write objects."""

    object_store_url: str = Field(
        description="Where objects are kept: `file:///path` or `s3://bucket/prefix` (any S3-compatible service)."
    )
    s3_endpoint_url: str | None = Field(None, description="Endpoint of an S3-compatible service that is not AWS.")
    s3_access_key: SecretStr | None = Field(
        None, description="Access key id; otherwise the environment's own credentials."
    )
    s3_secret_key: SecretStr | None = Field(None, description="Secret access key.")

    @field_validator("object_store_url")
    @classmethod
    def _known_store(cls, value: str) -> str:
        return _one_of_schemes(value, "file:///", "s3://")


def _one_of_schemes(url: str, *schemes: str) -> str:
    if not url.startswith(schemes):
        raise ValueError(f"it must begin with {' or '.join(schemes)}")
    return url


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True, validated_data={})
    return "none" if default is None or default is PydanticUndefined else str(default)


def describe(cls: type[BaseSettings]) -> list[tuple[str, str, str, str]]:
    """(environment variable, type, default, description) of every setting, for `--help` and docs/settings.md."""
    rows = []
    for name, info in cls.model_fields.items():
        annotation = info.annotation
        kind = getattr(annotation, "__name__", None) if not getattr(annotation, "__args__", None) else str(annotation)
        kind = (kind or str(annotation)).replace("typing.", "").replace("pydantic.types.", "")
        limits = [
            f"{sign} {limit:g}"
            for rule in info.metadata
            for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
            if isinstance(limit := getattr(rule, attribute, None), int | float)
        ]
        text = info.description or ""
        rows.append((ENV_PREFIX + name.upper(), ", ".join([kind, *limits]), _default_text(info), text))
    return rows


def load_settings(cls: type[S], description: str, argv: Sequence[str] | None = None) -> S:
    """The settings of this process. `--help` lists them; a wrong one ends the process with status 2 and a message."""
    lines = [f"  {env}  ({kind}; default: {default})\n      {text}" for env, kind, default, text in describe(cls)]
    argparse.ArgumentParser(
        prog=f"python -m {cls.__module__.split('.')[0]}",
        description=description,
        epilog="settings, from the environment:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    try:
        return cls()
    except ValidationError as error:
        sys.stderr.write("".join(f"{line}\n" for line in explain(cls, error)))
    except SettingsError as error:  # a list or mapping that is not JSON; the text names the field
        sys.stderr.write(f"wrong setting: {error}\n")
    raise SystemExit(2)


def explain(cls: type[BaseSettings], error: ValidationError) -> list[str]:
    """One line per wrong setting: its name, the value that was given (masked if secret), and what is allowed."""
    lines = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else "(settings)"
        info = cls.model_fields.get(name)
        if problem["type"] == "missing":
            given = "is not set"
        elif info is not None and "Secret" in str(info.annotation):
            given = "has a value that is not shown"
        else:
            given = f"is {problem['input']!r}" if info is not None else "does not fit"
        lines.append(
            f"wrong setting {ENV_PREFIX + name.upper() if info else name}: {given}; {problem['msg']}"
            + (f". {info.description}" if info is not None and info.description else "")
        )
    return lines


def masked(settings: BaseSettings) -> dict[str, Any]:
    """The settings as the log shows them at start: secrets and the passwords inside URLs are masked."""
    shown: dict[str, Any] = {}
    for name, value in settings.model_dump().items():
        text = str(value)
        if isinstance(value, str) and "://" in text and "@" in text:
            scheme, rest = text.split("://", 1)
            text = f"{scheme}://***@{rest.rsplit('@', 1)[1]}"
        shown[name] = text if isinstance(value, str | SecretStr) else value
    return shown
