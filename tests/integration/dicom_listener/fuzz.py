"""Random damage to good conversations, from a seed: bytes changed, cut, repeated, lengths made absurd."""

from __future__ import annotations

import random
from collections.abc import Sequence

from integration.dicom_listener.peers import encoded, image
from integration.dicom_listener.wire import (
    COMMAND,
    LAST,
    Wire,
    associate_rq,
    element,
    message,
    p_data,
    padded,
    pdu,
    pdv,
    store_command,
)

_OF_A_STUDY = 100
_EDGES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\xfe", b"\x7f\xff\xff\xff", b"\0\0\0\1")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four injuries."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(result) + 1)
        match chance.randrange(6):
            case 0 if result:
                result[place % len(result)] ^= 1 << chance.randrange(8)
            case 1:
                del result[place : place + chance.randrange(1, 40)]
            case 2:
                result[place:place] = chance.randbytes(chance.randrange(1, 40))
            case 3:
                result[place : place + 4] = chance.choice(_EDGES)
            case 4:
                result[place:place] = result[place : place + chance.randrange(1, 200)]
            case _:
                result[place : place + 8] = chance.randbytes(8)
    return bytes(result)


class Fuzzer:
    """Sends damaged data sets, commands and PDUs over as few connections as the listener lets it."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._chance = random.Random(seed)
        self._wire: Wire | None = None
        self._new_study()
        self.answers: dict[str, int] = {}

    def _new_study(self) -> None:
        ds = image(size=24)
        self._uid = str(ds.SOPInstanceUID)
        self._data = encoded(ds)

    def _associated(self) -> Wire:
        if self._wire is None:
            self._wire = Wire(self._port)
            self._wire.associate()
        return self._wire

    def _end(self) -> None:
        if self._wire is not None:
            self._wire.socket.close()
            self._wire = None

    def step(self) -> None:
        """One damaged thing: mostly data sets, which the association survives."""
        kind = self._chance.choices(("data set", "command", "pdu", "request"), (80, 10, 6, 4))[0]
        if kind == "data set":
            data = message(1, store_command(self._uid), damaged(self._data, self._chance))
            wire, whole = self._associated(), True
        elif kind == "command":
            data = message(1, damaged(store_command(self._uid), self._chance), self._data)
            wire, whole = self._associated(), False
        elif kind == "pdu":
            good = message(1, store_command(self._uid), self._data) + pdu(5, bytes(4))
            data, wire, whole = damaged(good, self._chance), self._associated(), False
        else:
            self._end()
            self._wire = wire = Wire(self._port)
            data, whole = damaged(associate_rq(), self._chance), False
        wire.send(data)
        if whole:
            answer = wire.answer()
        else:
            wire.send(p_data(pdv(3, COMMAND | LAST, _ECHO)))
            wire.nothing_follows()  # so that half a PDU is no reason to wait
            answer = "ended"
            while (heard := wire.answer()) != "ended":
                answer = heard
        self.answers[answer] = self.answers.get(answer, 0) + 1
        if not whole or answer == "ended":
            self._end()

    def run(self, count: int) -> None:
        """So many steps, a new study now and then: one of thousands of images would make ever larger events."""
        for number in range(count):
            if number % _OF_A_STUDY == 0:
                self._new_study()
            self.step()
        self._end()


_ECHO = b"".join(
    [element(0x2, padded("1.2.840.10008.1.1")), element(0x100, 0x30), element(0x110, 7), element(0x800, 0x101)]
)


def echo(port: int) -> str:
    """The answer to a C-ECHO on a new association."""
    with Wire(port) as wire:
        wire.associate()
        wire.send(p_data(pdv(3, COMMAND | LAST, _ECHO)))
        return wire.answer()


def kinds(answers: dict[str, int]) -> Sequence[str]:
    """What was heard, most often first."""
    return sorted(answers, key=lambda answer: -answers[answer])
