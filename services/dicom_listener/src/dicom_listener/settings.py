"""Settings of the listener."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, ValidationInfo, field_validator

from dicom_listener.domain.access import AccessRule
from dicom_listener.domain.uids import is_uid
from pipeline.settings import BusSettings, CommonSettings, DatabaseSettings, ObjectStoreSettings


class AllowedPeer(BaseModel):
    """One entry of the allow-list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    called: str = Field("*", min_length=1, max_length=16)
    calling: str = Field("*", min_length=1, max_length=16)
    networks: list[IPvAnyNetwork] = []

    def rule(self) -> AccessRule:
        """For the domain."""
        return AccessRule(self.called.strip(), self.calling.strip(), tuple(self.networks))


class KnownPeer(BaseModel):
    """Where another application entity listens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    tls: bool = False


class Settings(CommonSettings, DatabaseSettings, BusSettings, ObjectStoreSettings):
    """Everything that can be set from outside."""

    ae_title: str = Field(
        "ECHO",
        max_length=16,
        pattern=r"^[\x20-\x5b\x5d-\x7e]*[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]*$",
        description="AE title of this Storage SCP: 1 to 16 ASCII characters without backslash.",
    )
    require_called_aet: bool = Field(
        False,
        description="Reject associations that call another AE title, unless an entry of `ECHO_ALLOWED_PEERS` names it.",
    )
    dicom_host: str = Field("0.0.0.0", description="Address of the DICOM port.")
    dicom_port: int = Field(11112, ge=0, le=65535, description="DICOM port; 0 takes a free one, shown in the log.")
    maximum_associations: int = Field(
        32,
        ge=1,
        le=1000,
        description="Associations at the same time; further ones are rejected as transient. As many STOW-RS requests.",
    )
    maximum_associations_per_peer: int = Field(
        16, ge=1, le=1000, description="Associations at the same time from one network address."
    )
    receiving_processes: int = Field(
        2,
        ge=1,
        le=64,
        description="Processes that receive objects at the DICOM port; 1: the listener does it itself. More than there "
        "are cores do not help.",
    )
    allowed_peers: list[AllowedPeer] = Field(
        [],
        description='Who may send, as JSON: `[{"called": "ECHO", "calling": "PACS", "networks": ["10.1.0.0/16"]}]`; '
        "`called` and `calling` default to `*` (any), no `networks` means any. Empty: everybody.",
    )
    known_peers: dict[str, KnownPeer] = Field(
        {},
        description='Where AE titles listen, as JSON: `{"PACS": {"host": "pacs.example", "port": 104, "tls": false}}`. '
        "Results of storage commitments go there on a new association; to others, on the one they asked on.",
    )
    stow_port: int | None = Field(
        None, ge=0, le=65535, description="Port of STOW-RS (`POST /dicom-web/studies`); none: it is off."
    )
    stow_host: str = Field("0.0.0.0", description="Address of the STOW-RS port.")
    stow_ae_title: str = Field(
        "STOW-RS",
        min_length=1,
        max_length=16,
        description="Stands for the calling AE title of senders over STOW-RS: in `ECHO_ALLOWED_PEERS`, in events.",
    )
    stow_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="Senders over STOW-RS must show this bearer token; none: no token is asked for.",
    )
    stow_maximum_bytes: int = Field(
        16 * 2**30, ge=1024, description="A larger STOW-RS request is refused (413); objects that came whole are kept."
    )
    fetch_ae_title: str | None = Field(
        None,
        description="AE title of the archive that studies are fetched from by C-FIND and C-MOVE (`POST /v1/fetch`); it "
        "must be one of `ECHO_KNOWN_PEERS`, and must know where `ECHO_AE_TITLE` listens.",
    )
    fetch_dicomweb_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Or: address of its DICOMweb service, to which `/studies` is added (QIDO-RS and WADO-RS).",
    )
    fetch_dicomweb_token: SecretStr | None = Field(None, description="Bearer token for that service.")
    fetch_attempts: int = Field(
        20,
        ge=1,
        le=1000,
        description="Attempts to fetch a study, after 5 s, 10 s, ... at most 10 min, until it failed.",
    )
    fetch_answer_seconds: float = Field(
        300.0, gt=0, le=3600, description="An archive that says nothing for this long during a fetch is given up."
    )
    tls_certificate_file: str | None = Field(
        None,
        description="PEM file with this server's certificate chain: DICOM and STOW-RS port then speak TLS only.",
    )
    tls_key_file: str | None = Field(
        None, validate_default=True, description="PEM file with the private key of the certificate."
    )
    tls_client_ca_file: str | None = Field(
        None,
        description="PEM file of authorities: senders must show a certificate that one of them signed (mutual TLS).",
    )
    maximum_object_bytes: int = Field(
        2 * 2**30, ge=1024, description="A larger object is refused (A701H); what came of it is dropped."
    )
    maximum_pdu_bytes: int = Field(
        131_072, ge=4_096, le=4_194_304, description="Largest P-DATA-TF that peers are told to send."
    )
    network_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="An association or STOW-RS request silent for this long is ended."
    )
    request_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=600,
        description="A connection without an association request by then is closed (ARTIM), as is one without the head "
        "of a STOW-RS request, and a TLS handshake.",
    )
    drain_seconds: float = Field(
        20.0, ge=0, le=600, description="After SIGTERM, running associations and requests get this long to finish."
    )
    quiet_seconds: float = Field(
        30.0, gt=0, le=86_400, description="A study without a new object for this long is complete."
    )
    release_seconds: float = Field(
        5.0, ge=0, le=86_400, description="A study is complete this long after its last association was released."
    )
    maximum_age_seconds: float = Field(
        3600.0, gt=0, le=604_800, description="A study version open for this long is complete, whatever still arrives."
    )
    retain_days: float = Field(
        0.0,
        ge=0,
        description="Objects of studies that have been complete for this long are deleted, their rows stay; 0: never.",
    )
    retain_refusals_days: float = Field(
        90.0, gt=0, description="Refusals, and objects kept in quarantine for them, are deleted after this long."
    )
    orphan_grace_seconds: float = Field(
        3600.0, ge=0, description="Objects that a crash left without a row are deleted after this long."
    )
    sweep_seconds: float = Field(
        3600.0, gt=0, description="Seconds between looks for what is to be deleted; the first is at start."
    )
    min_free_bytes: int = Field(
        512 * 2**20, ge=0, description="With less free space than this objects are refused (A700H)."
    )
    resume_free_bytes: int = Field(
        768 * 2**20, ge=0, description="Objects are accepted again from this much free space on; >= min_free_bytes."
    )
    storage_classes: list[str] = Field(
        [],
        description="SOP Class UIDs of what is kept, as JSON; objects of other classes are refused (0122H). Empty: all "
        "are kept, so that an auto-route rule never backs up.",
    )
    duplicate_policy: Literal["keep_first", "replace"] = Field(
        "keep_first",
        description="Same SOP Instance UID with other bytes: the first stays the valid one, or the last replaces it.",
    )

    @field_validator("storage_classes")
    @classmethod
    def _uids(cls, value: list[str]) -> list[str]:
        if not all(is_uid(each) for each in value):
            raise ValueError("it must be a list of UIDs")
        return value

    @field_validator("fetch_ae_title")
    @classmethod
    def _known_archive(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value not in info.data.get("known_peers", {}):
            raise ValueError("it must be one of ECHO_KNOWN_PEERS")
        return value

    @field_validator("fetch_dicomweb_url")
    @classmethod
    def _one_archive(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("fetch_ae_title") is not None:
            raise ValueError("set either ECHO_FETCH_AE_TITLE or ECHO_FETCH_DICOMWEB_URL")
        return value

    @field_validator("tls_key_file")
    @classmethod
    def _key_of_certificate(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) != (info.data.get("tls_certificate_file") is None):
            raise ValueError("ECHO_TLS_CERTIFICATE_FILE and ECHO_TLS_KEY_FILE belong together")
        return value

    @field_validator("tls_client_ca_file")
    @classmethod
    def _authorities_need_tls(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("tls_certificate_file") is None:
            raise ValueError("it needs ECHO_TLS_CERTIFICATE_FILE and ECHO_TLS_KEY_FILE")
        return value

    @field_validator("resume_free_bytes")
    @classmethod
    def _above_minimum(cls, value: int, info: ValidationInfo) -> int:
        minimum = info.data.get("min_free_bytes", 0)
        if value < minimum:
            raise ValueError(f"must be at least ECHO_MIN_FREE_BYTES ({minimum})")
        return value
