"""The pages: rendered here, usable without JavaScript, made live by one small script."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import jinja2
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as InPath
from starlette.responses import HTMLResponse, RedirectResponse, Response

from console.adapters.actions import Actions
from console.adapters.api import NO_NUL
from console.adapters.models import DeadLetterOut, RefusalOut, StudyItem, study_detail
from console.adapters.queries import COUNT_LIMIT, Queries, RefusalFilter, StudyFilter
from console.domain.state import NEEDS_A_PERSON, STATES
from pipeline.http import from_another_site

_TEMPLATES = Path(__file__).parents[1] / "templates"
_PAGE_SIZE = 50
_Word = Annotated[str, Query(max_length=64, pattern=NO_NUL)]
_Key = Annotated[str, InPath(pattern=NO_NUL)]
_Cursor = Annotated[str, Query(max_length=256)]

_STATE_WORDS = {
    "receiving": "Receiving",
    "complete": "Complete",
    "queued": "Queued",
    "running": "Running",
    "generated": "Draft ready",
    "delivered": "Delivered",
    "skipped": "Skipped",
    "failed": "Failed",
    "parked": "Parked",
}
_HOP_WORDS = {
    "dicom_listener": "DICOM listener",
    "dispatcher": "Dispatcher",
    "inference_worker": "Model worker",
    "fhir_writer": "FHIR writer",
    "console": "Console",
    "registration": "Registration",
}
_FLAG_WORDS = {
    "out_of_domain": "Outside the model's domain",
    "image_not_read": "Not all images read",
    "low_confidence": "Low confidence",
    "contradiction": "Findings and impression disagree",
    "repeated_subword": "Garbled text",
    "repeated_word": "Garbled text",
    "repeated_punctuation": "Garbled text",
    "unknown_word": "Unknown word",
    "word_order": "Unusual word order",
    "loop": "Repeats itself",
    "missing_findings": "No findings section",
    "missing_impression": "No impression section",
}


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return ""
    if abs(seconds) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for big, small, big_word, small_word in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {big_word}" + (f" {rest} {small_word}" if rest else "")
    return f"{whole} s"


def plain(code: str) -> str:
    """A code as words: `pleural_effusion` -> `Pleural effusion`."""
    return code.replace("_", " ").capitalize()


def moment_of(text: str | None) -> datetime | None:
    """The time that a form's field names, in UTC where it names no zone; 422 if it names none."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise HTTPException(422, "The time is to be written like 2026-01-31T16:05.") from error


class Pages:
    """Renders templates; every value is escaped."""

    def __init__(self, queries: Queries, actions: Actions, dicom_hint: str | None) -> None:
        self._queries = queries
        self._actions = actions
        self._dicom_hint = dicom_hint
        self._env = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.filters.update(
            duration=duration,
            plain=plain,
            state_word=lambda state: _STATE_WORDS[state],
            hop_word=lambda hop: _HOP_WORDS.get(hop, plain(hop)),
            flag_word=lambda flag: _FLAG_WORDS.get(flag, plain(flag)),
            iso=lambda at: at.isoformat(),
            clock=lambda at: at.strftime("%Y-%m-%d %H:%M:%S"),
            web_link=lambda url: url if url.startswith(("http://", "https://")) else "",
        )

    def _html(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._env.get_template(template).render(count_limit=COUNT_LIMIT, **values)
        return HTMLResponse(text, status_code=status)

    def error(self, status: int, title: str, text: str) -> Response:
        """The page for an error; it asks no database, which may be what failed."""
        return self._html("error.html", status, title=title, text=text, problem_count=0)

    def studies(self, values: Mapping[str, str], cursor: str | None) -> Response:
        """The list. An unknown state is ignored rather than refused: the address may be an old bookmark."""
        accession, patient_id, state = (values[name].strip() for name in ("accession", "patient_id", "state"))
        known = next((name for name in STATES if name == state), None)
        wanted = StudyFilter(accession or None, patient_id or None, known)
        page = self._queries.studies(wanted, cursor or None, _PAGE_SIZE)
        search = {k: v for k, v in (("accession", accession), ("patient_id", patient_id), ("state", known)) if v}
        return self._html(
            "studies.html",
            studies=[StudyItem.of_row(row) for row in page.rows],
            next_link="/?" + urlencode({**search, "cursor": page.next}) if page.next else None,
            first_link="/?" + urlencode(search) if cursor else None,
            search=search,
            states=STATES,
            dicom_hint=self._dicom_hint,
            problem_count=self._queries.problem_count(),
        )

    def study(self, study_instance_uid: str) -> Response:
        """One study."""
        facts, images = self._queries.study(study_instance_uid)
        study = study_detail(facts, images)
        if study is None:
            raise HTTPException(404, "No study with this UID has been received.")
        return self._html(
            "study.html",
            study=study,
            actions=self._actions.of(facts),
            picture=next((image for image in study.images if image.has_pixel_data), None),
            now=datetime.now(UTC),
            total_s=_total_s(study.timeline, study.version),
            problem_count=self._queries.problem_count(),
        )

    def act(self, study_instance_uid: str, name: str) -> Response:
        """Do what a button says, and show the study again."""
        facts, _ = self._queries.study(study_instance_uid)
        self._actions.do(facts, name)
        return RedirectResponse(f"/studies/{study_instance_uid}", status_code=303)

    def refusals(self, values: Mapping[str, str], cursor: str | None) -> Response:
        """What senders were refused."""
        search = {name: value.strip() for name, value in values.items() if value.strip()}
        since, until = (moment_of(search.get(name)) for name in ("since", "until"))
        wanted = RefusalFilter(search.get("calling_ae_title"), search.get("reason"), since, until)
        page = self._queries.refusals(wanted, cursor or None, _PAGE_SIZE)
        return self._html(
            "refusals.html",
            refusals=[RefusalOut.of_row(row) for row in page.rows],
            next_link="/refusals?" + urlencode({**search, "cursor": page.next}) if page.next else None,
            first_link="/refusals?" + urlencode(search) if cursor else None,
            search=search,
            problem_count=self._queries.problem_count(),
        )

    def problems(self) -> Response:
        """What needs a person, and what waits."""
        return self._html(
            "problems.html",
            groups=[
                (
                    state,
                    [StudyItem.of_row(row) for row in self._queries.studies(StudyFilter(state=state), None, 100).rows],
                )
                for state in NEEDS_A_PERSON
            ],
            waiting=[StudyItem.of_row(row) for row in self._queries.waiting_for_delivery(100)],
            letters=[DeadLetterOut(**row) for row in self._queries.dead_letters(None, 100).rows],
            problem_count=self._queries.problem_count(),
        )


def _total_s(timeline: list[Any], version: int) -> float | None:
    """Seconds from the last image to the EHR's answer, of a version that was delivered."""
    complete = [
        step.at for step in timeline if step.version == version and step.event.startswith("imaging.study.completed")
    ]
    delivered = [
        step.at for step in timeline if step.version == version and step.event.startswith("imaging.report.delivered")
    ]
    return (max(delivered) - min(complete)).total_seconds() if complete and delivered else None


def page_router(pages: Pages) -> APIRouter:
    """The routes of the pages."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def studies(accession: _Word = "", patient_id: _Word = "", state: _Word = "", cursor: _Cursor = "") -> Response:
        return pages.studies({"accession": accession, "patient_id": patient_id, "state": state}, cursor)

    @router.get("/problems")
    def problems() -> Response:
        return pages.problems()

    @router.get("/refusals")
    def refusals(
        calling_ae_title: _Word = "", reason: _Word = "", since: _Word = "", until: _Word = "", cursor: _Cursor = ""
    ) -> Response:
        values = {"calling_ae_title": calling_ae_title, "reason": reason, "since": since, "until": until}
        return pages.refusals(values, cursor)

    @router.post("/studies/{study_instance_uid}/{action}")
    def act(study_instance_uid: _Key, action: str, request: Request) -> Response:
        if from_another_site(request.headers):
            raise HTTPException(403, "Requests from pages of other sites are refused.")
        return pages.act(study_instance_uid, action)

    @router.get("/studies/{study_instance_uid}")
    def study(study_instance_uid: _Key) -> Response:
        return pages.study(study_instance_uid)

    return router
