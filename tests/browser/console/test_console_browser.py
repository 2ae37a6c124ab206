"""The console in a real browser: the real process, on a real bus, with a real image."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pydicom
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from pipeline.bus import Message
from pipeline.clock import SystemClock
from pipeline.events import ALL_TOPICS, Event
from pipeline.sql_bus import SqlBus
from pipeline.store import LocalObjectStore
from unit.console.study_events import StudyEvents

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(900)]

T = TypeVar("T")
RADIOGRAPH = Path(__file__).parents[3] / "services/standalone/src/standalone/demo_data/nih-google-nofinding.dcm"
expect.set_options(timeout=120_000)  # five seconds by default: too few for a machine that does other things
SIZES = [pytest.param((1280, 800), id="1280"), pytest.param((390, 844), id="390")]
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class Running:
    """A console process and what it reads from."""

    url: str
    bus: SqlBus
    store: LocalObjectStore

    def publish(self, *events: Event) -> None:
        producer = self.bus.producer()
        producer.publish([Message(event.topic, event.key, event.to_bytes()) for event in events])
        producer.close()


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("console")
    bus = SqlBus(f"sqlite:///{folder}/bus.sqlite3", partitions=2)
    bus.ensure_topics(ALL_TOPICS)
    ready = folder / "log"
    environment = {
        "ECHO_HTTP_HOST": "127.0.0.1",
        "ECHO_HTTP_PORT": "0",
        "ECHO_BUS_URL": f"sqlite:///{folder}/bus.sqlite3",
        "ECHO_DATABASE_URL": f"sqlite:///{folder}/console.sqlite3",
        "ECHO_OBJECT_STORE_URL": f"file://{folder}/objects",
        "ECHO_DICOM_HINT": "AE title ECHO, port 11112",
    }
    with ready.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "console"], stderr=log, env={**os.environ, **environment})
    try:
        port = _wait(lambda: _port(ready, process))
        yield Running(f"http://127.0.0.1:{port}", bus, LocalObjectStore(folder / "objects"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, ready.read_text()
        # Names of patients and studies belong into pages, not into logs.
        assert "BROWSER-" not in ready.read_text()
    finally:
        process.kill()
        process.wait()
        bus.close()


def _port(log: Path, process: subprocess.Popen[bytes]) -> int | None:
    assert process.poll() is None, log.read_text()
    whole, _, _half = log.read_text().rpartition("\n")  # the last line may be under way
    for line in whole.splitlines():
        if '"message": "ready"' in line:
            return int(json.loads(line)["http_port"])
    return None


def _wait(ask: Callable[[], T | None], timeout_s: float = 240.0) -> T:
    deadline = time.monotonic() + timeout_s
    while (answer := ask()) is None:
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
    return answer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from servers import env

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=env.chromium(), args=_FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(console: Running, browser: Browser) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []
    errors: list[str] = []

    def opened(path: str, size: tuple[int, int], **options: object) -> Page:
        context = browser.new_context(
            base_url=console.url,
            viewport={"width": size[0], "height": size[1]},
            **options,  # type: ignore[arg-type]  # options of new_context as they are
        )
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if _is_fault(message) else None)
        page.goto(path)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert errors == []


def _is_fault(message: ConsoleMessage) -> bool:
    """Refusals by the content security policy, for one; not the picture that a test left out on purpose."""
    return message.type == "error" and not message.location["url"].endswith(".png")


def no_sideways_scrolling(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def study_with_radiograph(console: Running) -> tuple[StudyEvents, list[Event]]:
    """All events of a study whose image is the demo's real radiograph: another study each time."""
    number = uuid.uuid4().int
    name = f"BROWSER-{number % 10**7:07}"
    study = StudyEvents(uid=f"2.25.{number}", accession=name, patient_id=f"{name}-P", start=SystemClock().now())
    data = RADIOGRAPH.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    key = f"objects/{digest}.dcm"
    if not console.store.exists(key):
        console.store.put_bytes(data, key)
    ds = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    instance = {
        "sop_instance_uid": study.sop_instance_uid, "object_ref": key, "sha256": digest,
        "rows": int(ds.Rows), "columns": int(ds.Columns),
    }  # fmt: skip
    report: dict[str, Any] = {
        "flags": ["out_of_domain"],
        "notices": ["The image lies outside what this model was trained on."],
    }
    return study, [
        study.opened(), study.completed(instances=[instance]), study.requested(), study.started(),
        study.generated(**report), study.delivered(),
    ]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_a_study_appears_live_is_opened_and_shows_image_and_draft(
    console: Running, open_page: Callable[..., Page], size: tuple[int, int]
) -> None:
    study, events = study_with_radiograph(console)
    page = open_page("/", size)
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.get_by_role("link", name=study.accession)).to_have_count(0)
    page.evaluate("window.notReloaded = true")
    console.publish(*events[:1])
    link = page.get_by_role("link", name=study.accession)
    expect(link).to_be_visible()
    row = page.get_by_role("row").filter(has=link)
    expect(row).to_contain_text("Receiving")
    console.publish(*events[1:4])
    expect(row).to_contain_text("Running")
    assert page.evaluate("window.notReloaded") is True
    assert no_sideways_scrolling(page)

    link.click()
    expect(page.get_by_role("heading", name=study.accession)).to_be_visible()
    expect(page.locator("#draft")).to_contain_text("The draft appears here by itself.")
    console.publish(*events[4:])
    expect(page.locator("#draft")).to_contain_text("No acute abnormality.")
    expect(page.locator("#draft")).to_contain_text("The image lies outside what this model was trained on.")
    expect(page.locator("#study-head")).to_contain_text("Delivered")
    expect(page.locator("#way")).to_contain_text("Delivered to the EHR")
    expect(page.get_by_text("AI draft, not verified.", exact=False).first).to_be_visible()
    expect(page.get_by_role("link", name="DiagnosticReport/123")).to_be_visible()
    image = page.locator(".film img")
    expect(image).to_be_visible()
    expect(image).to_have_js_property("naturalWidth", 1024)
    assert no_sideways_scrolling(page)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", ["/", "/problems", "/refusals", "/studies/2.25.777"])
def test_no_page_scrolls_sideways_even_with_the_longest_words(
    console: Running, open_page: Callable[..., Page], size: tuple[int, int], path: str
) -> None:
    study = StudyEvents(777, uid="2.25.777", accession="W" * 16, patient_id="M" * 64, start=SystemClock().now())
    console.publish(study.opened(), study.completed(), study.generated(), study.parked())
    page = open_page("/", size)
    expect(page.get_by_role("link", name=study.accession)).to_be_visible()
    page.goto(path)
    expect(page.locator("#live")).to_have_text("Live")
    if path == "/studies/2.25.777":  # its object does not exist: the page says so instead of a broken picture
        expect(page.locator(".film")).to_have_text("This image cannot be shown. Open it to see why.")
        page.wait_for_load_state("load")
    assert no_sideways_scrolling(page)


def test_the_search_is_reached_and_used_with_the_keyboard_alone(
    console: Running, open_page: Callable[..., Page]
) -> None:
    study, events = study_with_radiograph(console)
    console.publish(*events)
    page = open_page("/", (1280, 800))
    expect(page.get_by_role("link", name=study.accession)).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type(study.accession)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(rf"accession={study.accession}\b"))
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name=study.accession).focus()
    console.publish(study.opened(version=2))  # the list is replaced under the reader's hand
    expect(page.locator("tbody tr")).to_contain_text("Receiving")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=study.accession)).to_be_visible()


def test_without_javascript_everything_is_there(console: Running, open_page: Callable[..., Page]) -> None:
    study, events = study_with_radiograph(console)
    console.publish(*events)

    def delivered() -> bool | None:
        answer = httpx.get(f"{console.url}/api/studies/{study.uid}", timeout=120)
        return (answer.status_code == 200 and answer.json()["state"] == "delivered") or None

    _wait(delivered)
    page = open_page("/", (1280, 800), java_script_enabled=False)
    page.get_by_role("link", name=study.accession).click()
    expect(page.locator("#draft")).to_contain_text("No acute abnormality.")
    expect(page.locator("main")).to_contain_text("UTC")


def test_text_has_enough_contrast_in_both_schemes(open_page: Callable[..., Page]) -> None:
    """WCAG AA, 4.5 : 1, of every text colour of the palette on the grounds where it is used."""
    pairs = [("text", "page"), ("text", "card"), ("soft", "page"), ("soft", "card"), ("accent", "page"),
             ("accent", "card"), ("card", "accent"), ("ok", "ok-bg"), ("busy", "busy-bg"), ("warn", "warn-bg"),
             ("bad", "bad-bg"),
             ("idle", "idle-bg"), ("bad", "card"), ("card", "bad"), ("soft", "warn-bg"), ("soft", "bad-bg"),
             ("soft", "busy-bg"), ("soft", "idle-bg"), ("text", "warn-bg"), ("text", "bad-bg")]  # fmt: skip
    for scheme in ("light", "dark"):
        page = open_page("/", (1280, 800), color_scheme=scheme)
        for ink, ground in pairs:
            ratio = _contrast(*(_colour(page, name) for name in (ink, ground)))
            assert ratio >= 4.5, f"{ink} on {ground}, {scheme}: {ratio:.2f}"


def _colour(page: Page, name: str) -> str:
    return str(
        page.evaluate("(n) => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim()", name)
    )


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ np.array([0.2126, 0.7152, 0.0722]))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
