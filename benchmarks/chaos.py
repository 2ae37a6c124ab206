"""The cluster mode on one machine under faults: python benchmarks/chaos.py --minutes 3 [--seed N].

Two senders keep up a steady load of generated studies, some with a late image, and retry like a PACS until they are
told success. Meanwhile services and servers are killed and stopped, connections cut, Redis flushed, the object store
filled (chaos_faults.py). At the end every acknowledged study must have exactly one DiagnosticReport, that of its last
version, and nothing may be left at work (chaos_verdict.py); otherwise the exit status is 1. scripts/services.sh must
have started the servers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import httpx  # noqa: E402  # the path is set above
import sqlalchemy as sa  # noqa: E402
from chaos_faults import MARKS, MUTE_SHARE, SERVERS, SHARES, Faults, plan, small_disk, start_servers  # noqa: E402
from chaos_load import LATE_S, NO_ANSWER, Arrival, Sender, Sent, arrivals, register  # noqa: E402
from chaos_verdict import (  # noqa: E402
    Outcome,
    faults_of,
    is_final,
    outcomes,
    plot,
    processes_of,
    spread,
    told,
    unfinished,
    versions,
    written,
)

from e2e.flow import ClusterFlow, Study, study_of, wait_until  # noqa: E402
from servers import env  # noqa: E402
from servers.cut_proxy import CutProxy  # noqa: E402
from servers.databases import kafka_topics_removed, redis_database  # noqa: E402

SETTINGS = {
    # The worker's limits are scaled down in their proportions, so that what a killed one held comes back in a minute
    # and a half instead of five; everything else that has to do with time is the product's default.
    "ECHO_REQUEST_DEADLINE_S": "50",
    "ECHO_WATCHDOG_S": "60",
    "ECHO_TERMINATION_GRACE_S": "75",
    "ECHO_VISIBILITY_TIMEOUT_S": "80",
    "ECHO_RUN_DEADLINE_S": "90",
    "ECHO_QUIET_SECONDS": "30",
    # The limit is for studies that end their worker. Here somebody else ends it, again and again.
    "ECHO_MAX_ATTEMPTS": "20",
    **MARKS,
}


def settled(flow: ClusterFlow, redis_url: str, sent: dict[str, Sent], patience_s: float) -> dict[str, int]:
    """Wait until all that was acknowledged is delivered and nothing is at work any more; what is left after that."""
    pending = {uid for uid, some in sent.items() if some.acknowledged}
    deadline, told_at, left = time.monotonic() + patience_s, 0.0, {"not looked at": 1}
    while time.monotonic() < deadline and left:
        with contextlib.suppress(httpx.HTTPError, OSError, sa.exc.OperationalError):
            known = versions(flow)
            pending -= {
                uid
                for uid in pending
                if uid in known and known[uid][1] and is_final(study_of(flow, uid), known[uid][0])
            }
            left = unfinished(flow, redis_url) | ({"studies not delivered": len(pending)} if pending else {})
        if left and time.monotonic() - told_at > 15:
            told_at = time.monotonic()
            print(f"         waiting: {', '.join(f'{count} {words}' for words, count in left.items())}", flush=True)
        time.sleep(2.0 if left else 0.0)
    return left


def main() -> None:
    """Run, write the result and the picture; exits with 1 when something that must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--every", type=float, default=10.0, metavar="S", help="mean pause between studies of a sender")
    parser.add_argument("--mute", action="store_true", help="also let connections fall silent without an end")
    parser.add_argument("--patience", type=float, default=600.0, metavar="S", help="longest wait for the last reports")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "chaos.json")
    parser.add_argument("--png", type=Path, help="default: beside the JSON")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="put the services' logs there")
    options = parser.parse_args()
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    print(f"seed {options.seed}", flush=True)
    result = run(options)
    written(result, options.json)
    plot(result, options.png or options.json.with_suffix(".png"))
    print(json.dumps({key: value for key, value in result.items() if key not in ("faults", "studies")}, indent=2))
    if result["problems"]:
        raise SystemExit("chaos: FAILED\n" + "\n".join(result["problems"]))


@dataclass
class Rig:
    """The cluster mode with a proxy before each server, and what went wrong in taking it down."""

    flow: ClusterFlow
    redis_url: str
    objects: Path
    links: dict[str, CutProxy]
    can_fill: bool
    problems: list[str] = field(default_factory=list)


@contextlib.contextmanager
def rig(scratch: Path, keep: Path | None) -> Iterator[Rig]:
    """Started and ready; ended afterwards."""
    addresses = {
        "kafka": f"127.0.0.1:{env.port('KAFKA_PROXIED')}",
        "redis": urlsplit(env.redis_url()).netloc,
        "postgres": "{0.host}:{0.port}".format(sa.make_url(env.postgres_url())),
        "hapi": urlsplit(env.hapi_url()).netloc,
    }
    with (
        redis_database() as redis_url,
        kafka_topics_removed(env.kafka_bootstrap()) as prefix,
        small_disk(scratch / "objects") as can_fill,
        contextlib.ExitStack() as stack,
    ):
        links: dict[str, CutProxy] = {}
        for name, address in addresses.items():
            links[name] = CutProxy(address, env.port("KAFKA_PROXY") if name == "kafka" else 0)
            stack.callback(links[name].close)
        near = {name: f"127.0.0.1:{link.port}" for name, link in links.items()}
        settings = SETTINGS | {
            "ECHO_OBJECT_STORE_URL": f"file://{scratch}/objects",
            "ECHO_BUS_URL": f"kafka://{near['kafka']}",
            "ECHO_BROKER_URL": f"redis://{near['redis']}{urlsplit(redis_url).path}",
            "ECHO_FHIR_BASE_URL": f"http://{near['hapi']}{urlsplit(env.hapi_url()).path}",
        }
        flow = ClusterFlow(scratch / "cluster", redis_url, prefix, settings, near["postgres"])
        links["dicom"] = CutProxy(f"127.0.0.1:{flow.dicom_port}")
        stack.callback(links["dicom"].close)
        made = Rig(flow, redis_url, scratch / "objects", links, can_fill)
        try:
            flow.wait_ready()
            yield made
        finally:
            try:
                flow.stop()
            except (AssertionError, subprocess.TimeoutExpired) as error:
                made.problems.append(f"the services did not end as they should: {error}")
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                for log in flow.folder.glob("*.log"):
                    shutil.copy(log, keep)
        if orphans := processes_of(prefix):
            made.problems.append(f"processes left: {orphans}")


def prepared(folder: Path, seed: int, seconds: float, every_s: float) -> list[list[tuple[Arrival, Study]]]:
    """What each sender is to send; the EHR knows the patients."""
    command = [str(Path(sys.executable).with_name("echo-model")), "phantoms", "--out", str(folder), "--dicom"]
    subprocess.run([*command, "--count", "40", "--seed", "9"], check=True, stdout=subprocess.DEVNULL)
    templates = sorted(folder.glob("*.dcm"))
    found = []
    for name in "ab":
        code, times = f"{uuid.uuid4().hex[:6]}{name}", arrivals(seed, name, seconds, every_s)
        studies = [Study(templates[n % len(templates)], code, n) for n in range(len(times))]
        register(studies)
        found.append(list(zip(times, studies, strict=True)))
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run; `problems` of the result says what does not hold."""
    seconds, problems = options.minutes * 60, []
    with tempfile.TemporaryDirectory() as scratch, rig(Path(scratch), options.keep) as cluster:
        studies = prepared(Path(scratch) / "phantoms", options.seed, seconds, options.every)
        print(f"{sum(map(len, studies))} studies to send", flush=True)
        started, epoch = time.monotonic(), time.time()
        port = cluster.links["dicom"].port
        senders = [Sender(port, some, started, f"{options.seed}{n}") for n, some in enumerate(studies)]
        for sender in senders:
            sender.start()
        kinds = SHARES | ({"mute": MUTE_SHARE} if options.mute else {})
        kinds = {kind: share for kind, share in kinds.items() if cluster.can_fill or kind != "fill"}
        faults = Faults(cluster.flow, cluster.redis_url, cluster.objects, cluster.links, started)
        with faults.restarting():
            faults.run(plan(options.seed, seconds, kinds))
            start_servers(*SERVERS)
            for sender in senders:
                sender.join(LATE_S[1] + options.patience)
                if sender.is_alive():
                    problems.append("a sender is still refused, long after the last fault")
            sent = {uid: some for sender in senders for uid, some in sender.sent.items() if some.acknowledged}
            print(f"{len(sent)} studies acknowledged, waiting for their reports", flush=True)
            left = settled(cluster.flow, cluster.redis_url, sent, options.patience)
        waited_s = time.monotonic() - started - seconds
        ends = {uid: Outcome() for uid in sent}
        try:
            ask = partial(outcomes, cluster.flow, list(sent.values()))
            ends |= wait_until("the end of every study is known", ask, 300, 5.0, done=lambda _: True)
        except AssertionError as error:  # the rest of the result is worth having
            problems.append(f"what became of the studies is not known: {error}")
    took = [
        max(ends[uid].delivered_at) - max(some.acknowledged.values())
        for uid, some in sent.items()
        if ends[uid].delivered_at
    ]
    import torch  # only now: it takes a while, and much memory beside the services

    from echo_model.bench import describe_machine

    attempts = sum((sender.attempts for sender in senders), Counter())
    wrong = Counter(name for uid in sent for name in faults_of(sent[uid], ends[uid]))
    problems += [f"{count} of {len(sent)} studies: {name}" for name, count in sorted(wrong.items())]
    problems += [f"{count} {words}" for words, count in left.items()]
    problems += [f"a fault could not be carried out: {text}" for text in faults.failures]
    problems += [
        f"{n} answers of status {status:04X}H" for status, n in attempts.items() if status and not told(status)
    ]
    problems += cluster.problems
    if not sent:
        problems.append("no study was acknowledged")
    return {
        "machine": describe_machine(torch.device("cpu")) + _share(),
        "seed": options.seed,
        "minutes": options.minutes,
        "waited_for_the_last_reports_s": round(waited_s, 1),
        "acknowledged": len(sent),
        "with_a_later_version": sum(outcome.version > 1 for outcome in ends.values()),
        "objects_acknowledged": sum(len(some.acknowledged) for some in sent.values()),
        "refused_and_retried": sum(n for status, n in attempts.items() if status not in (0, NO_ANSWER)),
        "unanswered_and_retried": attempts[NO_ANSWER],
        "refusals_by_status": {f"{status:04X}H": n for status, n in sorted(attempts.items()) if 0 < status < NO_ANSWER},
        "lost": wrong["lost"],
        "duplicated": wrong["duplicated"],
        "not_of_the_last_version": wrong["not of the last version"],
        "left_at_work": left,
        "faults_by_kind": dict(Counter(fault["kind"] for fault in faults.done)),
        "not_possible_here": [] if cluster.can_fill else ["fill: a file system may not be mounted"],
        "ended_by_themselves": faults.ended,
        "last_image_to_report_s": spread(took),
        "problems": problems,
        "faults": sorted(faults.done, key=lambda fault: fault["at_s"]),
        "studies": [_row(sent[uid], ends[uid].delivered_at, epoch) for uid in sent],
    }


def _share() -> str:
    usable, load = len(os.sched_getaffinity(0)), os.getloadavg()[2]
    whole = "" if usable == os.cpu_count() else f", {usable} of them used"
    return f"{whole}; load of 15 minutes {load:.1f}"


def _row(sent: Sent, delivered_at: Any, epoch: float) -> dict[str, Any]:
    acknowledged = sorted(sent.acknowledged.values())
    return {
        "images": len(acknowledged),
        "first_acknowledged_s": round(acknowledged[0] - epoch, 1),
        "last_acknowledged_s": round(acknowledged[-1] - epoch, 1),
        "first_reported_s": round(min(delivered_at) - epoch, 1) if delivered_at else None,
        "last_reported_s": round(max(delivered_at) - epoch, 1) if delivered_at else None,
    }


if __name__ == "__main__":
    main()
