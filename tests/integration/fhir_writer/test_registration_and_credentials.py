"""The embedded EHR's registration with the writer behind it; credentials and certificates on the wire."""

from __future__ import annotations

import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from fhir_writer.adapters.fhir_http import FhirHttp
from fhir_writer.domain.codes import DEFAULT_PATIENT_SYSTEM
from fhir_writer.domain.outcome import Unavailable
from integration.fhir_writer.fault_proxy import FaultProxy
from standalone.registration import PatientRegistration
from unit.fhir_writer.samples import completed, generated, new_uid


def test_a_registered_patient_gets_the_report(ehr, make_writer, mrn):
    writer, uids = make_writer(ehr.base_url), [new_uid(), new_uid()]
    with httpx.Client(timeout=120, trust_env=False) as http:
        registration = PatientRegistration(http, ehr.base_url, {}, DEFAULT_PATIENT_SYSTEM)
        for uid in uids:
            registration.study_completed(None, completed(uid, mrn=mrn))
    (patient,) = ehr.search("Patient", identifier=f"{DEFAULT_PATIENT_SYSTEM}|{mrn}")
    assert patient["name"][0]["family"] == "PHANTOM"
    for uid in uids:
        writer.feed(completed(uid, mrn=mrn), generated(uid))
    writer.run_due()
    assert [event["result"] for event in writer.events()] == ["created", "created"]


@pytest.mark.parametrize(
    ("credentials", "header"),
    [
        ({}, None),
        ({"token": "abc"}, "Bearer abc"),
        ({"user": "u", "password": "p"}, "Basic dTpw"),
    ],
)
def test_credentials_are_sent_as_set(sekmet, credentials, header):
    proxy = FaultProxy(sekmet.base_url)
    try:
        fhir = FhirHttp(proxy.url, timeout_s=120, **credentials)
        fhir.metadata()
        fhir.close()
    finally:
        proxy.close()
    assert proxy.seen[0][2].get("Authorization") == header


@pytest.fixture
def tls_server(tmp_path: Path):
    """An HTTPS server with a certificate that only its own file vouches for."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"resourceType": "CapabilityStatement"}')

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_address[1]}/fhir", certificate
    server.shutdown()
    server.server_close()


def test_a_certificate_nobody_vouches_for_is_refused(tls_server):
    url, certificate = tls_server
    with pytest.raises(Unavailable) as refusal:
        FhirHttp(url).metadata()
    assert "certificate is not trusted" in refusal.value.text
    trusting = FhirHttp(url, ca_file=str(certificate))
    assert trusting.metadata()["resourceType"] == "CapabilityStatement"
    trusting.close()
