"""Kill processes and servers at random under a steady load: python benchmarks/chaos.py --minutes 3 [--seed N].

The cluster mode on one machine (scripts/services.sh must have started the servers). A sender retries like a PACS until
it is told success. At the end every study that was acknowledged must have exactly one DiagnosticReport.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from e2e.flow import ClusterFlow, Study, reports_of, send, study_of, wait_until  # noqa: E402  # the path is set above
from servers import env  # noqa: E402  # the path is set above
from servers.databases import kafka_topics_removed, redis_database  # noqa: E402  # the path is set above

SERVICES = ["dicom_listener", "dispatcher", "inference_worker", "fhir_writer", "console"]
SERVERS = ["kafka", "redis", "postgres"]


def services_sh(*arguments: str) -> None:
    """Run the script that owns the servers."""
    subprocess.run(
        [str(ROOT / "scripts" / "services.sh"), *arguments], check=True, stdout=subprocess.DEVNULL, timeout=240
    )


def main() -> None:
    """Run and write the result; exits with 1 when a study was lost or reported twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "chaos.json")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(f"seed {options.seed}")
    acknowledged: list[Study] = []
    refused = 0
    events: list[tuple[float, str]] = []
    stop = threading.Event()
    started = time.monotonic()

    with (
        tempfile.TemporaryDirectory() as scratch,
        redis_database() as redis_url,
        kafka_topics_removed(env.kafka_bootstrap()) as prefix,
    ):
        command = [str(Path(sys.executable).with_name("echo-model")), "phantoms", "--out", f"{scratch}/p"]
        subprocess.run([*command, "--count", "40", "--seed", "9", "--dicom"], check=True, stdout=subprocess.DEVNULL)
        templates = sorted(Path(f"{scratch}/p").glob("*.dcm"))
        flow = ClusterFlow(Path(scratch) / "cluster", redis_url, prefix)
        try:
            flow.wait_ready()

            def sender(name: str) -> None:
                nonlocal refused
                number, own = 0, random.Random(f"{options.seed}{name}")
                while not stop.is_set():
                    study = Study(templates[number % len(templates)], f"{uuid.uuid4().hex[:6]}{name}", number)
                    number += 1
                    flow.register(study.patient_id, study.birth_date, study.sex)
                    image = study.image()
                    while (status := send(image, flow.dicom_port)) != 0x0000:
                        refused += 1
                        time.sleep(1.0)  # as a PACS does: the same object again until it is taken
                    acknowledged.append(study)
                    assert status == 0
                    stop.wait(own.expovariate(1 / 4.0))

            senders = [threading.Thread(target=sender, args=(name,)) for name in "ab"]
            for thread in senders:
                thread.start()
            while time.monotonic() - started < options.minutes * 60:
                time.sleep(rng.uniform(5, 15))
                victim = rng.choice(SERVICES + SERVERS)
                events.append((round(time.monotonic() - started, 1), victim))
                print(f"{events[-1][0]:7.1f} s  SIGKILL {victim}", flush=True)
                if victim in SERVERS:
                    services_sh("restart" if rng.random() < 0.5 else "kill", victim)
                    services_sh("start", victim)
                else:
                    flow.sigkill(victim)
            stop.set()
            for thread in senders:
                thread.join(300)
            print(f"{len(acknowledged)} studies acknowledged, waiting for their reports", flush=True)

            def all_final() -> bool:
                return all(study_of(flow, study.uid).get("state") == "delivered" for study in acknowledged)

            try:
                wait_until("all delivered", all_final, 600, 2.0)
            except AssertionError as error:
                print(error)
            counts = {study.uid: len(reports_of(flow, study.patient_id)) for study in acknowledged}
        finally:
            stop.set()
            flow.stop()
    result = {
        "seed": options.seed,
        "minutes": options.minutes,
        "killed": events,
        "acknowledged": len(acknowledged),
        "refusals_retried": refused,
        "lost": sum(count == 0 for count in counts.values()),
        "reported_more_than_once": sum(count > 1 for count in counts.values()),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if result["lost"] or result["reported_more_than_once"] or not acknowledged:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
