"""What chaos plans, and what it calls lost, duplicated or refused."""

from __future__ import annotations

import importlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servers import cut_proxy
from servers.cut_proxy import CutProxy

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
MODULES = ("chaos_faults", "chaos_load", "chaos_verdict")


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def test_a_plan_depends_on_its_seed_only(chaos: dict[str, Any]) -> None:
    plan = chaos["chaos_faults"].plan
    assert plan(5, 180.0) == plan(5, 180.0) != plan(6, 180.0)


@pytest.mark.parametrize("seed", range(20))
def test_three_minutes_hold_every_kind_of_fault(chaos: dict[str, Any], seed: int) -> None:
    faults = chaos["chaos_faults"].plan(seed, 180.0)
    assert {fault.kind for fault in faults} == set(chaos["chaos_faults"].SHARES)
    assert all(0 < fault.at_s < 180 for fault in faults)


def test_twenty_minutes_hit_every_target(chaos: dict[str, Any]) -> None:
    module = chaos["chaos_faults"]
    kinds = module.SHARES | {"mute": module.MUTE_SHARE}
    hit = {(fault.kind, fault.target) for fault in module.plan(1, 1200.0, kinds)}
    assert hit == {(kind, target) for kind, targets in module.TARGETS.items() for target in targets}


def test_a_kind_that_is_not_possible_is_left_out(chaos: dict[str, Any]) -> None:
    kinds = {fault.kind for fault in chaos["chaos_faults"].plan(1, 600.0, {"kill": 1, "cut": 1})}
    assert kinds == {"kill", "cut"}


def test_arrivals_repeat_and_some_have_a_late_image(chaos: dict[str, Any]) -> None:
    arrivals = chaos["chaos_load"].arrivals
    some = arrivals(3, "a", 1200.0, 10.0)
    assert some == arrivals(3, "a", 1200.0, 10.0) != arrivals(3, "b", 1200.0, 10.0)
    assert 80 < len(some) < 160
    assert 0.1 < sum(arrival.late_s is not None for arrival in some) / len(some) < 0.4


@pytest.fixture
def well(chaos: dict[str, Any]) -> tuple[Any, Any]:
    """A study of two versions, delivered as it should be."""
    sent = chaos["chaos_load"].Sent("1.2", "P", {"1.2.1": 100.0, "1.2.2": 140.0})
    outcome = chaos["chaos_verdict"].Outcome(
        indexed=frozenset({"1.2.1", "1.2.2"}),
        version=2,
        completed_at=145.0,
        state="delivered",
        delivered_version=2,
        delivered_at=[110.0, 150.0],
        fhir_version="3",
        reports=[("3", 148.0)],
    )
    return sent, outcome


def test_nothing_is_wrong_with_one_report_of_the_last_version(chaos: dict[str, Any], well: tuple[Any, Any]) -> None:
    assert chaos["chaos_verdict"].faults_of(*well) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"reports": []}, ["lost"]),
        ({"indexed": frozenset({"1.2.1"})}, ["lost"]),
        ({"reports": [("3", 148.0), ("1", 149.0)]}, ["duplicated"]),
        ({"delivered_version": 1}, ["not of the last version"]),
        ({"reports": [("4", 148.0)]}, ["not of the last version"]),
        ({"reports": [("3", 144.0)]}, ["not of the last version"]),
        ({"state": "parked"}, ["in state parked"]),
    ],
)
def test_what_is_wrong_is_named(
    chaos: dict[str, Any], well: tuple[Any, Any], change: dict[str, Any], wrong: list[str]
) -> None:
    sent, outcome = well
    assert chaos["chaos_verdict"].faults_of(sent, replace(outcome, **change)) == wrong


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0xA900, 0xC000, 0xC210, 0x0110, 0x0122, 0xFFFF])
def test_a_refused_sender_knows(chaos: dict[str, Any], status: int) -> None:
    assert chaos["chaos_verdict"].told(status)


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007, 0xFE00, 0x0001])
def test_success_and_warnings_are_no_refusal(chaos: dict[str, Any], status: int) -> None:
    assert not chaos["chaos_verdict"].told(status)


def test_result_and_picture_are_written(chaos: dict[str, Any], tmp_path: Path) -> None:
    rng, module = random.Random(1), chaos["chaos_verdict"]
    result = {
        "seed": 1,
        "minutes": 3.0,
        "faults": [
            {"kind": fault.kind, "target": fault.target, "at_s": fault.at_s, "lasted_s": fault.for_s}
            for fault in chaos["chaos_faults"].plan(1, 180.0)
        ],
        "studies": [
            {
                "images": rng.randint(1, 2),
                "first_acknowledged_s": float(at),
                "last_acknowledged_s": float(at),
                "first_reported_s": at + 8.0 if at else None,
                "last_reported_s": at + 9.0 if at else None,
            }
            for at in range(0, 180, 5)
        ],
        "problems": [],
    }
    module.written(result, tmp_path / "new" / "chaos.json")
    text = (tmp_path / "new" / "chaos.json").read_text(encoding="utf-8")
    assert json.loads(text) == result
    assert len(text.splitlines()) < len(result["faults"]) + len(result["studies"]) + 15  # a line each
    module.plot(result, tmp_path / "chaos.png")
    assert (tmp_path / "chaos.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_has_its_children_in_its_family(chaos: dict[str, Any]) -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & echo started; wait"], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"started\n"
        family = chaos["chaos_faults"].family(os.getpid())
        assert child.pid in family
        assert len(chaos["chaos_faults"].family(child.pid)) == 2
    finally:
        for pid in chaos["chaos_faults"].family(child.pid):
            os.kill(pid, 9)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


@pytest.fixture
def echo_server() -> Iterator[str]:
    """Sends back what it gets."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    connection.sendall(data)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def test_a_proxy_carries_until_it_is_cut_and_again_afterwards(echo_server: str) -> None:
    proxy = CutProxy(echo_server)
    try:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as before:
            before.sendall(b"one")
            assert before.recv(16) == b"one"
            proxy.cut()
            assert not _answers(before)
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as after:
            after.sendall(b"two")
            assert after.recv(16) == b"two"
    finally:
        proxy.close()


def test_a_proxy_that_is_cut_carries_nothing_new(echo_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_cut, carry_again, lengths = threading.Event(), threading.Event(), []

    def sleep(seconds: float) -> None:
        lengths.append(seconds)
        is_cut.set()
        carry_again.wait()

    monkeypatch.setattr(cut_proxy, "time", SimpleNamespace(sleep=sleep))
    proxy = CutProxy(echo_server)
    cutting = threading.Thread(target=proxy.cut, args=(3.0,))
    cutting.start()
    try:
        assert is_cut.wait(120)
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as during:
                assert not _answers(during)
        carry_again.set()
        cutting.join()
        assert lengths == [3.0]
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as after:
            assert _answers(after)
    finally:
        carry_again.set()
        cutting.join()
        proxy.close()


def _answers(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"?")
        return bool(connection.recv(16))
    except OSError:
        return False
