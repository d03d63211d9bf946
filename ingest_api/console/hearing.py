"""A form's word comes back to this process by its view of the topic: the page that follows waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: So long a view may lag behind the log before the page comes without the newest word.
_VIEW_S = 1.5
_LOOK_S = 0.05


async def heard(is_known: Callable[[], bool]) -> None:
    """Wait until this process has read the new word, so that the page after the form shows it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _VIEW_S
    while loop.time() < end:
        if is_known():
            return
        await asyncio.sleep(_LOOK_S)
