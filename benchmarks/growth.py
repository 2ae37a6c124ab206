"""What one more study costs when a million stand in the tables, against a thousand: SQLite and PostgreSQL.

    python benchmarks/growth.py --json benchmarks/results/growth.json

The services' own handlers and repositories do the work; the tables are filled inside the database. Both sizes are
measured in turn, so that what else the machine does meets both alike. Of the listener also: what receiving waits while
retention deletes. PostgreSQL is the one of ECHO_TEST_POSTGRES_URL (a user who may create databases); without it SQLite
alone. Everything that was made is deleted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from growth_parts import PARTS, TEMPLATE, Listener, Part, job_of
from growth_tables import SECONDS_APART, multiply, sizes

from dicom_listener.adapters.key_locks import KeyLocks
from dicom_listener.adapters.ledger import SqlLedger
from dicom_listener.adapters.object_index import SqlObjectIndex
from dicom_listener.handlers.sweep import Sweeper
from pipeline.database import Database

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from servers.databases import drop_database  # found by the line above

SMALL, WANTED = 1000, 1.2
FIRST_NUMBER = 900_000_000_000
Timings = dict[str, list[float]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(values)
    figures = {
        "median": statistics.median(ordered),
        "p5": ordered[len(ordered) // 20],
        "p95": ordered[len(ordered) * 19 // 20],
        "max": ordered[-1],
    }
    return {name: round(1000 * value, 3) for name, value in figures.items()}


@contextlib.contextmanager
def sqlite_urls(folder: Path) -> Iterator[Callable[[], str]]:
    """Addresses of new databases in the folder."""
    numbers = itertools.count()
    yield lambda: f"sqlite:///{folder}/{next(numbers)}.sqlite3"
    for path in folder.glob("*.sqlite3*"):
        path.unlink()


@contextlib.contextmanager
def postgres_urls(maintenance: str) -> Iterator[Callable[[], str]]:
    """Addresses of new databases of the server; dropped afterwards."""
    engine = sa.create_engine(maintenance, isolation_level="AUTOCOMMIT")
    names: list[str] = []

    def new() -> str:
        names.append(f"growth_{uuid.uuid4().hex[:12]}")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {names[-1]}"))
        return sa.make_url(maintenance).set(database=names[-1]).render_as_string(hide_password=False)

    try:
        yield new
    finally:
        engine.dispose()
        for name in names:
            drop_database(name, maintenance)


def filled(part: type[Part], url: str, folder: Path, studies: int) -> Part:
    """The service on a database with so many finished studies."""
    database = Database(url)
    for _, step in part(database, folder).study(TEMPLATE):
        step()
    database.close()
    engine = sa.create_engine(url)
    numbers = {f"{TEMPLATE:012d}": "", job_of(TEMPLATE): "00000000-0000-5000-8000-"}
    multiply(engine, part.tables, studies, numbers)
    engine.dispose()
    return part(Database(url), folder)


def timed(timings: Timings, name: str, step: Callable[[], object]) -> float:
    """Run it, note its seconds."""
    began = time.perf_counter()
    step()
    took = time.perf_counter() - began
    timings[name].append(took)
    return took


def measure(parts: Sequence[Part], repeats: int) -> list[tuple[Timings, Timings]]:
    """(one more study, looks) of each part; all parts in turn, the first rounds not counted."""
    results: list[tuple[Timings, Timings]] = [(defaultdict(list), defaultdict(list)) for _ in parts]
    slow: set[str] = set()
    for turn in range(-3, repeats):
        kept = results if turn >= 0 else [(defaultdict(list), defaultdict(list)) for _ in parts]
        for (study, looks), part in zip(kept, parts, strict=True):
            whole = sum(timed(study, name, step) for name, step in part.study(FIRST_NUMBER + repeats + turn))
            study["whole"].append(whole)
            if turn >= 0 and turn % 5:  # looks are rarer than studies, and some are slow
                continue
            for name, look in part.looks():
                if turn > 0 and turn % 50 and name in slow:
                    continue
                if timed(looks, name, look) > 0.5:
                    slow.add(name)
    return results


def compared(small: Timings, large: Timings) -> dict[str, Any]:
    """Both sizes and the ratio of their medians."""
    rows = {}
    for name in small:
        few, many = spread(small[name]), spread(large[name])
        rows[name] = {"small_ms": few, "large_ms": many, "ratio": round(many["median"] / few["median"], 2)}
    return rows


def record_for(part: Listener, numbers: Iterator[int], seconds: float) -> list[float]:
    """Seconds of each object's record, one after the other for so long."""
    ledger, took = SqlLedger(part.database, "keep_first"), []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stored = part.stored(next(numbers))
        began = time.perf_counter()
        ledger.record(stored, part.clock.now())
        took.append(time.perf_counter() - began)
    return took


def retention(part: Listener, studies: int, seconds: float) -> dict[str, Any]:
    """Objects received while those of the older half of all studies are given up, against nothing going on."""
    numbers = itertools.count(FIRST_NUMBER + 10_000_000)
    alone = record_for(part, numbers, seconds / 2)
    sweeper = Sweeper(
        part.store,
        SqlObjectIndex(part.database, part.clock),
        KeyLocks(),
        part.clock,
        orphan_grace=timedelta(hours=1),
        keep_objects=timedelta(seconds=SECONDS_APART * studies / 2),
        keep_refusals=timedelta(days=90),
        interval=timedelta(hours=1),
    )
    stop, expired = threading.Event(), [0]
    thread = threading.Thread(target=lambda: expired.append(sweeper.expire(stop)))
    thread.start()
    beside = record_for(part, numbers, seconds)
    stop.set()
    thread.join()
    return {
        "record_alone_ms": spread(alone),
        "record_while_deleting_ms": spread(beside),
        "objects_recorded_a_second": round(len(beside) / seconds, 1),
        "objects_deleted_a_second": round(expired[-1] / seconds, 1),
    }


def service_result(
    part: type[Part], new_url: Callable[[], str], folder: Path, studies: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """One service on one kind of database; its databases are gone afterwards, so that the disk holds one at a time."""
    began = time.monotonic()
    small, large = (filled(part, new_url(), folder, count) for count in (SMALL, studies))
    loaded = time.monotonic()
    (few, few_looks), (many, many_looks) = measure([small, large], repeats)
    tables = sizes(large.database.engine, part.tables)
    rows = compared(few, many)
    result = {
        "studies": {"small": SMALL, "large": studies},
        "ratio": rows["whole"]["ratio"],
        "reached": rows["whole"]["ratio"] <= WANTED,
        "study": rows,
        "looks": compared(few_looks, many_looks),
        "tables": tables,
        "load_seconds": round(loaded - began, 1),
    }
    if isinstance(large, Listener):
        result["retention"] = retention(large, studies, seconds)
    for one in (small, large):
        drop(one.database)
    result["seconds"] = round(time.monotonic() - began, 1)
    print(part.name, json.dumps({k: v for k, v in result.items() if k != "tables"}), flush=True)
    return result


def drop(database: Database) -> None:
    """Give the disk back before the next service needs it."""
    url = database.engine.url
    if database.is_sqlite:
        database.close()
        for path in Path(str(url.database)).parent.glob(f"{Path(str(url.database)).name}*"):
            path.unlink()
        return
    with database.engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
    database.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--retention-seconds", type=float, default=20.0)
    parser.add_argument("--only", choices=[part.name for part in PARTS], action="append")
    parser.add_argument("--engine", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--folder", type=Path, help="where the databases of SQLite lie (about 5 GB)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    parts = [part for part in PARTS if not args.only or part.name in args.only]
    maintenance = os.environ.get("ECHO_TEST_POSTGRES_URL")
    engines = args.engine or (["sqlite", "postgresql"] if maintenance else ["sqlite"])
    began, load = time.monotonic(), os.getloadavg()[0]
    result: dict[str, Any] = {
        "repeats": args.repeats,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_at_start": round(load, 1),
        "engines": {},
    }
    folder = Path(tempfile.mkdtemp(prefix="echo-growth-", dir=args.folder))
    try:
        for engine in engines:
            if engine == "postgresql" and not maintenance:
                parser.error("ECHO_TEST_POSTGRES_URL is not set")
            with sqlite_urls(folder) if engine == "sqlite" else postgres_urls(str(maintenance)) as new_url:
                result["engines"][engine] = services = {}
                for part in parts:
                    services[part.name] = service_result(
                        part, new_url, folder / "objects", args.studies, args.repeats, args.retention_seconds
                    )
                    result["seconds"] = round(time.monotonic() - began)
                    if args.json:  # after each, so that a run that is cut off has told something
                        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
