"""A TCP proxy in front of a server, whose connections can all be cut or fall silent at once. Standard library only."""

from __future__ import annotations

import asyncio
import threading
import time


class _Flow:
    """The connections that were made since the last silence."""

    stopped = False


class CutProxy:
    """Listens on loopback and carries bytes to and from `target`, a `host:port`; works in a thread of its own."""

    def __init__(self, target: str, port: int = 0) -> None:
        host, _, number = target.rpartition(":")
        self._target = (host, int(number))
        self._closed = False
        self._cuts = 0
        self._flow = _Flow()
        self._transports: set[asyncio.WriteTransport] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", port))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.carried = 0
        """Connections so far."""
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def cut(self, for_s: float = 0.0) -> None:
        """Reset every connection, and every new one for so many seconds; returns when it carries again."""
        self._closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(60)
            time.sleep(for_s)
        finally:
            self._closed = False

    def silence(self) -> None:
        """Carry nothing more on the connections there are, and keep them open: the server is gone without a word."""
        self._flow.stopped = True
        self._flow = _Flow()

    def close(self) -> None:
        """Reset every connection and listen no more."""
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _cut(self) -> None:
        self._cuts += 1
        self._abort()

    def _abort(self) -> None:
        for transport in self._transports:
            transport.abort()

    async def _end(self) -> None:
        self._server.close()
        self._abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            writer.transport.abort()
            return
        cuts = self._cuts
        try:
            there, thither = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        if self._cuts != cuts:  # in the meantime
            writer.transport.abort()
            thither.transport.abort()
            return
        self.carried += 1
        flow = self._flow
        ends = {writer.transport, thither.transport}
        self._transports |= ends
        try:
            ways = [asyncio.create_task(_carry(*pair, flow)) for pair in ((reader, thither), (there, writer))]
            _, other = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in other:
                way.cancel()
            await asyncio.wait(ways)
        finally:
            for transport in ends:
                transport.close()  # what was written is still sent
            self._transports -= ends


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: _Flow) -> None:
    try:
        while data := await reader.read(65_536):
            if flow.stopped:
                continue
            writer.write(data)
            await writer.drain()
    except OSError:
        writer.transport.abort()
