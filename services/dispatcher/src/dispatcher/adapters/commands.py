"""The operator's commands: the same as the REST resources, for a shell, also while the service is down."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any

from dispatcher.desk import Desk, NotNow, Unknown

COMMANDS = """\
  held                         studies that wait for a person
  release UID | decline UID    report such a study, or not
  failed                       jobs that ended without a report
  replay JOB | discard JOB     try such a job again, or give it up
  expedite JOB                 move a waiting job to the urgent queue
  dead-letters                 events that this service gave up
  replay-letter ID | discard-letter ID
  pause REASON | resume | paused
                               hand over no more jobs (those at work are finished), or go on
Lists are JSON, a line each."""


def run_command(argv: Sequence[str], desk: Desk, out: IO[str]) -> int:
    """0: done, 1: unknown or not possible now (said on standard error), 2: no such command."""
    lists: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "held": desk.held,
        "failed": desk.failed,
        "dead-letters": desk.letters,
        "paused": lambda: [pause] if (pause := desk.paused()) else [],
    }
    acts: dict[str, Callable[[str], None]] = {
        "release": desk.release,
        "decline": desk.decline,
        "replay": desk.replay,
        "discard": desk.discard,
        "expedite": desk.expedite,
        "replay-letter": desk.replay_letter,
        "discard-letter": desk.discard_letter,
        "pause": desk.pause,
    }
    parser = argparse.ArgumentParser(
        prog="python -m dispatcher", epilog=COMMANDS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in (*lists, "resume"):
        commands.add_parser(name)
    for name in acts:
        commands.add_parser(name).add_argument("what")
    asked = parser.parse_args(argv)
    try:
        if asked.command in lists:
            for item in lists[asked.command]():
                out.write(json.dumps(item) + "\n")
        elif asked.command == "resume":
            desk.resume()
        else:
            acts[asked.command](asked.what)
    except (Unknown, NotNow) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
