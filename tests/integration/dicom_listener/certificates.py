"""Certificates of two authorities, made anew for each test run."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dicom_listener.adapters.transport import TlsFiles, server_context


@dataclass(frozen=True)
class Authority:
    """A certificate authority made for one test run; `issue` gives (certificate, key)."""

    folder: Path
    name: str

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self.folder, timeout=60)

    @property
    def certificate(self) -> Path:
        path = self.folder / f"{self.name}.pem"
        if not path.exists():
            subject, key = f"/CN={self.name}", f"{self.name}.key"
            curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
            self._openssl("req", "-x509", *curve, "-keyout", key, "-out", path.name, "-subj", subject, "-days", "2")
        return path

    def issue(self, name: str) -> tuple[Path, Path]:
        authority = self.certificate
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        # RSA, which every DICOM toolkit of the last twenty years can do.
        self._openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", key.name, "-out", request.name, "-subj", f"/CN={name}"
        )
        self._openssl(
            *("x509", "-req", "-in", request.name, "-CA", authority.name, "-CAkey", f"{self.name}.key"),
            *("-CAcreateserial", "-out", certificate.name, "-days", "2", "-extfile", extensions.name),
        )
        return certificate, key


@dataclass(frozen=True)
class Papers:
    """Certificates of the server, of a known sender and of a stranger."""

    authority: Path
    server: tuple[Path, Path]
    sender: tuple[Path, Path]
    stranger: tuple[Path, Path]


def new_papers(folder: Path) -> Papers:
    """In files in the folder."""
    ours, theirs = Authority(folder, "hospital"), Authority(folder, "elsewhere")
    return Papers(ours.certificate, ours.issue("server"), ours.issue("sender"), theirs.issue("stranger"))


def server(papers: Papers, *, mutual: bool) -> ssl.SSLContext:
    """The listener's own; `mutual`: senders must show a certificate of the known authority."""
    certificate, key = papers.server
    return server_context(TlsFiles(str(certificate), str(key), str(papers.authority) if mutual else None))


def client(papers: Papers, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(papers.authority))
    if own is not None:
        context.load_cert_chain(*own)
    return context
