"""Two connections as one: what comes from either goes to the other, until one of them ends."""

from __future__ import annotations

import asyncio
import contextlib

_CHUNK_BYTES = 64 * 1024

#: Where a connection is read, and where it is written.
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def relay(one: Ends, other: Ends) -> None:
    """Returns when both have ended; cancelled, it cuts both off."""
    (one_reader, one_writer), (other_reader, other_writer) = one, other
    try:
        await asyncio.gather(_copy(one_reader, other_writer), _copy(other_reader, one_writer))
        for writer in (one_writer, other_writer):
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    finally:
        for writer in (one_writer, other_writer):
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError:
        return
    finally:
        # Either end may leave first, and both connections end together.
        writer.close()
