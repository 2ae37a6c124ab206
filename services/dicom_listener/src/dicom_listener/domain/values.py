"""Raw header values made usable. Real headers are poor: whatever cannot be understood becomes None, never an error."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from datetime import date, time
from functools import cache

from pydicom import charset
from pydicom.datadict import tag_for_keyword

from dicom_listener.domain.encoded import Elements

_SPECIFIC_CHARACTER_SET = 0x00080005
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_DATE = re.compile(r"(\d{4})[.\-/]?(\d{2})[.\-/]?(\d{2})$", re.ASCII)
_TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2})?(?:\.(\d{1,6})\d*)?$", re.ASCII)
_DATE_TIME = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?([+-]\d{4})?$", re.ASCII)
_ZONE = re.compile(r"([+-])(\d{2})(\d{2})$", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,12}$", re.ASCII)


@cache
def tag(keyword: str) -> int:
    """The tag of a DICOM keyword; a keyword that the dictionary does not have is a programming error."""
    number = tag_for_keyword(keyword)
    if number is None:
        raise KeyError(keyword)
    return number


def codecs_of(raw: bytes) -> list[str]:
    """Python codecs for SpecificCharacterSet (0008,0005); unknown terms are left out."""
    terms = [term.strip() for term in raw.decode("ascii", "replace").replace("\0", "").split("\\")]
    codecs = [charset.python_encoding[term] for term in terms if term in charset.python_encoding]
    return codecs or ["iso8859"]


def decode_text(raw: bytes, codecs: Sequence[str]) -> str:
    """Text in the data set's character sets, with ISO 2022 escapes; bytes that do not fit become U+FFFD."""
    if b"\x1b" in raw:
        try:
            return charset.decode_bytes(raw, list(codecs), set(b"\\^="))
        except (LookupError, ValueError, Warning):
            return raw.decode("ascii", "replace")
    first = codecs[0]
    if first == "iso8859" and len(codecs) == 1 and not raw.isascii():
        # The default repertoire is ASCII; senders that forget to declare theirs mostly mean one of these two.
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    try:
        return raw.decode(first, "replace")
    except LookupError:
        return raw.decode("latin-1")


def clean(text: str) -> str:
    """Without padding, control characters and lone surrogates."""
    if text.isascii() and text.isprintable():
        return text.strip()
    return _CONTROL.sub(" ", text).encode("utf-8", "replace").decode("utf-8").strip()


class Header:
    """Reads values of one data set or item by DICOM keyword."""

    def __init__(self, elements: Elements, codecs: Sequence[str] | None = None) -> None:
        self._elements = elements
        declared = elements.values.get(_SPECIFIC_CHARACTER_SET)
        self._codecs = codecs_of(declared) if declared else list(codecs or ["iso8859"])

    @property
    def has_pixel_data(self) -> bool:
        """Whether the data set has an element with pixels."""
        return self._elements.has_pixel_data

    def _text(self, keyword: str) -> str:
        raw = self._elements.values.get(tag(keyword))
        return "" if raw is None else decode_text(raw, self._codecs)

    def uid(self, keyword: str) -> str:
        """The value of a UI element without its padding, not validated; empty if absent."""
        raw = self._elements.values.get(tag(keyword), b"")
        return raw.decode("ascii", "replace").strip("\0 ")

    def texts(self, keyword: str, longest: int) -> list[str]:
        """All values of a multi-valued text, each cut to `longest` characters; empty ones are kept as places."""
        values = [clean(value)[:longest] for value in self._text(keyword).split("\\")]
        return values if any(values) else []

    def text(self, keyword: str, longest: int) -> str | None:
        """A description, cut to `longest` characters; the first value where several were given."""
        text = self._text(keyword)
        values = (clean(value) for value in text.split("\\")) if text else ()
        return next((value[:longest] for value in values if value), None)

    def identifier(self, keyword: str, longest: int) -> str | None:
        """Like `text`, but never cut: half an identifier could be somebody else's."""
        value = self.text(keyword, 4 * longest + 1)
        return value if value is not None and len(value) <= longest else None

    def code(self, keyword: str, longest: int) -> str | None:
        """A code string in capitals."""
        value = self.text(keyword, longest)
        return value.upper() if value else None

    def integer(self, keyword: str) -> int | None:
        """An integer string (IS)."""
        value = self.text(keyword, 16)
        return int(value) if value and _INTEGER.match(value) else None

    def count(self, keyword: str) -> int | None:
        """A non-negative integer string (IS)."""
        value = self.integer(keyword)
        return value if value is not None and value >= 0 else None

    def unsigned_short(self, keyword: str) -> int | None:
        """The first value of a US element."""
        raw = self._elements.values.get(tag(keyword), b"")
        if len(raw) < 2:
            return None
        return int(struct.unpack_from("<H" if self._elements.little_endian else ">H", raw)[0])

    def item(self, keyword: str) -> Header:
        """The first item of a sequence; one without values if there is none."""
        items = self._elements.sequences.get(tag(keyword), [])
        return Header(items[0] if items else Elements(), self._codecs)

    def date(self, keyword: str) -> date | None:
        """A DA element, in the old form with dots, too."""
        return parse_date(self.text(keyword, 16) or "")

    def time(self, keyword: str) -> str | None:
        """A TM element as far as it was given: `HH`, `HH:MM`, `HH:MM:SS`, `HH:MM:SS.ffffff`."""
        return parse_time(self.text(keyword, 28) or "")


def parse_date(text: str) -> date | None:
    """The date, or None if there is none or no such day."""
    match = _DATE.match(text)
    if match is None:
        return None
    try:
        return date(*map(int, match.groups()))
    except ValueError:
        return None


def parse_time(text: str) -> str | None:
    """ISO 8601 text of the time as far as given, or None. A leap second becomes second 59."""
    match = _TIME.match(text)
    if match is None:
        return None
    hour, minute, second, fraction = match.groups()
    try:
        time(int(hour), int(minute or 0), min(int(second or 0), 59))
    except ValueError:
        return None
    parts = [hour]
    if minute is not None:
        parts.append(minute)
        if second is not None:
            parts.append(f"{min(int(second), 59):02d}" + (f".{fraction}" if fraction else ""))
    return ":".join(parts)


def parse_date_time(text: str) -> str | None:
    """ISO 8601 text of a DT value as far as given and without its zone, or None."""
    match = _DATE_TIME.match(text)
    if match is None:
        return None
    year, month, day, clock, _zone = match.groups()
    if day is None:
        whole = parse_date(f"{year}{month or '01'}01")
        return None if whole is None else "-".join(part for part in (year, month) if part)
    when = parse_date(f"{year}{month}{day}")
    if when is None:
        return None
    return join(when, parse_time(clock or ""))


def parse_zone(text: str) -> str | None:
    """`+01:00` for `+0100`, or None."""
    match = _ZONE.match(text)
    if match is None or int(match[2]) > 14 or int(match[3]) > 59:
        return None
    return f"{match[1]}{match[2]}:{match[3]}"


def join(day: date | None, clock: str | None) -> str | None:
    """ISO 8601 text of a date and a time; an hour alone becomes `HH:00`, since ISO readers want minutes."""
    if day is None:
        return None
    if clock is None:
        return day.isoformat()
    return f"{day.isoformat()}T{clock if ':' in clock else clock + ':00'}"
