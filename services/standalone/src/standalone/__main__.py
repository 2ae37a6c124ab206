"""`python -m standalone`: the whole flow on one machine, nothing else to install."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; allowed are 1 to 65535")
    return port


def _ae_title(text: str) -> str:
    if not 1 <= len(text.strip()) <= 16 or not text.isascii() or not text.isprintable() or "\\" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no AE title; allowed are 1 to 16 printable ASCII characters without backslash"
        )
    return text.strip()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range; allowed are more than 0 and at most 86400 seconds")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m standalone",
        description="Automatic chest X-ray reporting, whole flow in one process tree: DICOM listener, dispatcher, "
        "model worker, FHIR writer, console, a task queue and a small EHR to try things out. Not a medical device.",
    )
    commands = root.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="run everything until SIGTERM",
        description="Runs everything until SIGTERM. Other settings of the services are taken from the environment "
        "(see docs/settings.md).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.add_argument("--data-dir", type=Path, required=True, help="holds everything: databases, objects, logs")
    serve.add_argument("--dicom-port", type=_port, default=11112, help="where the PACS sends to")
    serve.add_argument("--http-port", type=_port, default=8000, help="console, REST, FHIR, health, metrics")
    serve.add_argument("--host", default="127.0.0.1", help="address of both ports; there is no login yet")
    serve.add_argument("--ae-title", type=_ae_title, default="ECHO", help="our DICOM application entity title")
    serve.add_argument(
        "--quiet-seconds", type=_seconds, default=30.0, help="a study counts as complete after this silence"
    )
    serve.add_argument("--model", default="demo", help="checkpoint folder, or 'demo' for the one trained on phantoms")
    serve.add_argument(
        "--register-patients", choices=["auto", "none"], default="auto",
        help="auto: create the Patient in the embedded EHR when a new patient's study completes",
    )  # fmt: skip
    serve.add_argument(
        "--out-of-domain", choices=["deliver", "park"], default="deliver",
        help="drafts on images unlike the training images: deliver with a plain statement, or hold for a person",
    )  # fmt: skip
    serve.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], default="info", help="least severe level logged"
    )
    demo = commands.add_parser("demo", help="start everything, send two studies by DICOM, show their reports, stop")
    demo.add_argument("--data-dir", type=Path, default=Path(".demo"), help="emptied at each start")
    demo.add_argument("--dicom-port", type=_port, default=11112, help="another free one is taken if it is in use")
    demo.add_argument("--http-port", type=_port, default=8000, help="another free one is taken if it is in use")
    demo.add_argument("--keep", action="store_true", help="keep running afterwards until Ctrl-C")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = vars(parser().parse_args(argv))
    if options.pop("command") == "demo":
        from standalone.demo import DemoOptions, demo

        return demo(DemoOptions(**options))
    from standalone.serve import ServeOptions, serve

    return serve(ServeOptions(**options))


if __name__ == "__main__":
    raise SystemExit(main())
