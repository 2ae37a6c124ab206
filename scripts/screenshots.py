"""Make docs/images anew: the console with a real study, as a browser shows it. Needs Chromium (scripts/services.sh)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pydicom
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from e2e.flow import EmbeddedFlow, send, wait_delivered  # noqa: E402  # the path is set above
from servers import env  # noqa: E402  # the path is set above
from standalone.demo import REAL_RADIOGRAPH, make_phantom  # noqa: E402  # the path is set above

QUIET_BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    """Send the demo's two studies and take the pictures."""
    out = ROOT / "docs" / "images"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        flow = EmbeddedFlow(Path(scratch) / "data")
        try:
            flow.wait_ready()
            uids = []
            for path in (REAL_RADIOGRAPH, make_phantom(Path(scratch) / "phantoms")):
                ds = pydicom.dcmread(path)
                assert send(ds, flow.dicom_port) == 0x0000
                uids.append(str(ds.StudyInstanceUID))
                wait_delivered(flow, uids[-1])
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=env.chromium(), args=QUIET_BROWSER)
                for width, height in ((1280, 900), (390, 844)):
                    page = browser.new_page(viewport={"width": width, "height": height})
                    for name, address in (
                        ("studies", ""),
                        ("study", f"studies/{uids[1]}"),
                        ("real", f"studies/{uids[0]}"),
                    ):
                        page.goto(f"{flow.console_url}/{address}")
                        page.wait_for_timeout(800)
                        page.screenshot(path=out / f"console-{name}-{width}.png", full_page=name != "studies")
                browser.close()
        finally:
            flow.stop()


if __name__ == "__main__":
    main()
