"""The report as people read it: plain text, an HTML page, and the XHTML narrative. All carry the AI-draft banner."""

from __future__ import annotations

from html import escape

from fhir_writer.domain.study import Draft

BANNER = (
    "AI DRAFT - PRELIMINARY. Written by software, not by a radiologist, and not verified. "
    "A radiologist must read the images and verify, correct or reject it."
)
_NOTHING = "The model wrote nothing here."


def _sections(draft: Draft) -> list[tuple[str, str]]:
    sections = [
        ("Findings", draft.findings or _NOTHING),
        ("Impression", draft.impression or _NOTHING),
    ]
    if draft.unsure:
        sections.append(("The model was unsure of", "\n".join(draft.unsure)))
    return sections


def _origin(draft: Draft) -> str:
    return (
        f"Drafted by the model {draft.model_id}, version {draft.model_version}, from version {draft.study_version} "
        "of the study. Not a medical device."
    )


def plain_text(draft: Draft) -> str:
    """Banner, notices, sections, origin; lines end with a newline."""
    parts = [BANNER, *draft.notices]
    parts += [f"{title.upper()}\n{text}" for title, text in _sections(draft)]
    return "\n\n".join([*parts, _origin(draft)]) + "\n"


def _markup(draft: Draft) -> str:
    def lines(text: str) -> str:
        return "<br/>".join(escape(line) for line in text.splitlines())

    parts = [f"<p><b>{escape(BANNER)}</b></p>"]
    parts += [f"<p><b>{lines(notice)}</b></p>" for notice in draft.notices]
    for title, text in _sections(draft):
        parts.append(f"<h3>{escape(title)}</h3><p>{lines(text)}</p>")
    parts.append(f"<p><i>{escape(_origin(draft))}</i></p>")
    return "".join(parts)


def html_page(draft: Draft) -> str:
    """A whole page that needs nothing else: no script, no style sheet, no link."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"/><title>AI draft report, preliminary</title></head>'
        f"<body>{_markup(draft)}</body></html>"
    )


def narrative(draft: Draft) -> str:
    """The `text.div` of the DiagnosticReport."""
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{_markup(draft)}</div>'


def small_narrative(text: str) -> str:
    """The `text.div` of a resource that one line describes."""
    return f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{escape(text)}</p></div>'
