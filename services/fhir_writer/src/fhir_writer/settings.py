"""Settings of the FHIR writer. Every one is an environment variable with the prefix `ECHO_`."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from fhir_writer.domain.codes import DEFAULT_PATIENT_SYSTEM
from pipeline.settings import BusSettings, CommonSettings, DatabaseSettings


def is_loopback(url: str) -> bool:
    """Whether the host of a URL is this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(CommonSettings, DatabaseSettings, BusSettings):
    """What a site decides."""

    fhir_base_url: str = Field(description="Base URL of the EHR's FHIR R4 API, `https://host/path`.")
    fhir_public_url: str | None = Field(
        None, description="The same server as people reach it, for links in the console; otherwise ECHO_FHIR_BASE_URL."
    )
    fhir_token: SecretStr | None = Field(None, description="Token, with ECHO_FHIR_AUTH=bearer.")
    fhir_user: str | None = Field(None, description="User, with ECHO_FHIR_AUTH=basic.")
    fhir_password: SecretStr | None = Field(None, description="Password, with ECHO_FHIR_AUTH=basic.")
    fhir_auth: Literal["none", "bearer", "basic"] = Field("none", description="How the service shows who it is.")
    fhir_ca_file: str | None = Field(None, description="PEM file of the authority behind the server's certificate.")
    fhir_verify_tls: bool = Field(True, description="Check the server's certificate; `false` only on loopback.")
    fhir_timeout_s: float = Field(30.0, gt=0, le=300, description="Longest silence of the server within a request.")
    fhir_patient_systems: dict[str, str] = Field(
        default_factory=dict,
        description="JSON object: IssuerOfPatientID to identifier system. With it, unlisted issuers park the report.",
    )
    fhir_default_patient_system: str = Field(
        DEFAULT_PATIENT_SYSTEM,
        description="Identifier system of patient IDs without an issuer, and of all while no mapping is set.",
    )
    fhir_accession_system: str | None = Field(None, description="Identifier system of accession numbers at the EHR.")
    fhir_link_orders: bool = Field(True, description="Look for the order by accession number and refer to it.")
    fhir_report_status: Literal["preliminary", "partial"] = Field("preliminary", description="Status of the report.")
    fhir_security_label: Literal["DEVAST", "AIAST"] = Field(
        "DEVAST", description="Security label of AI-made resources; AIAST is newer than R4, strict servers refuse it."
    )
    organisation_name: str = Field(
        "AI draft reporting service", min_length=1, max_length=200, description="Shown as the report's performer."
    )
    site_timezone: str = Field("UTC", description="Zone of DICOM times that carry none, as `Europe/Berlin`.")
    out_of_domain: Literal["deliver", "park"] = Field(
        "deliver", description="A report on an image outside the model's domain: delivered with a warning, or held."
    )
    retain_deliveries_days: float = Field(
        90.0,
        ge=0,
        le=36500,
        description="What is kept of a report that is delivered or withdrawn (its text, the patient's identifiers) is "
        "deleted after this long; what waits stays. 0: never.",
    )
    delivery_threads: int = Field(4, ge=1, le=64, description="Reports delivered at the same time.")
    delivery_lease_s: float = Field(
        15.0, ge=3, le=600, description="After a process died, its deliveries are taken over when this long has passed."
    )
    retry_first_s: float = Field(1.0, gt=0, le=60, description="Pause after the first failure, doubled with each.")
    retry_longest_s: float = Field(120.0, ge=1, le=3600, description="Longest pause between attempts.")
    breaker_failures: int = Field(5, ge=1, le=1000, description="Failures in a row after which only probes are sent.")
    breaker_open_s: float = Field(10.0, gt=0, le=600, description="Pause between probes.")
    patient_match_grace_seconds: float = Field(
        20.0, ge=0, le=86400, description="How long an unknown patient is waited for before the report is parked."
    )
    patient_recheck_seconds: float = Field(
        300.0, ge=0, le=86400, description="How often a report parked for an unknown patient is tried again; 0: never."
    )

    @field_validator("fhir_base_url", "fhir_public_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be http://host[:port]/path or https://host[:port]/path")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not carry a user or password; use ECHO_FHIR_AUTH")
        return value.rstrip("/")

    @field_validator("fhir_verify_tls")
    @classmethod
    def _verified(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and not is_loopback(info.data.get("fhir_base_url", "")):
            raise ValueError("may be false only when ECHO_FHIR_BASE_URL is on loopback")
        return value

    @field_validator("fhir_ca_file")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            if not Path(value).is_file():
                raise ValueError("is not a file")
            try:
                ssl.create_default_context(cafile=value)
            except (ssl.SSLError, OSError):
                raise ValueError("is not a PEM file of certificates that can be read") from None
        return value

    @field_validator("fhir_token", "fhir_user", "fhir_password")
    @classmethod
    def _ascii(cls, value: SecretStr | str | None) -> SecretStr | str | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text is not None and (not text.strip() or not text.isascii() or not text.isprintable()):
            raise ValueError("must be printable ASCII and not empty")
        return value

    @field_validator("fhir_auth")
    @classmethod
    def _auth(cls, value: str, info: ValidationInfo) -> str:
        needed = {"none": (), "bearer": ("fhir_token",), "basic": ("fhir_user", "fhir_password")}[value]
        for name in needed:
            if info.data.get(name) is None:
                raise ValueError(f"needs ECHO_{name.upper()}")
        return value

    @field_validator("fhir_default_patient_system", "fhir_accession_system")
    @classmethod
    def _system(cls, value: str | None) -> str | None:
        if value is not None and not _is_uri(value):
            raise ValueError("must be an absolute URI such as urn:oid:2.16.840.1... or https://...")
        return value

    @field_validator("fhir_patient_systems")
    @classmethod
    def _systems(cls, value: dict[str, str]) -> dict[str, str]:
        wrong = [issuer for issuer, system in value.items() if not _is_uri(system)]
        if wrong:
            raise ValueError(f"the system of {wrong[0]!r} is no absolute URI")
        return value

    @field_validator("site_timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError("is no zone of the IANA time zone database") from None
        return value


def _is_uri(text: str) -> bool:
    return ":" in text and not any(c.isspace() or c == "|" for c in text)
