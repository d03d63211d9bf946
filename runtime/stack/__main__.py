"""The supervisor of `vlastream up` in the background:  python -m runtime.stack FOLDER API_PORT SECURE PROGRESS_FD"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from runtime.errors import Fatal
from runtime.stack.commands import run_supervisor
from runtime.stack.layout import Layout


def main(folder: str, api_port: str, secure: str, progress_fd: str) -> int:
    progress = os.fdopen(int(progress_fd), "w", buffering=1)

    def tell(line: str) -> None:
        """To the program that waits for the start, as long as it listens."""
        try:
            if not progress.closed:
                progress.write(f"{line}\n")
        except BrokenPipeError:
            progress.close()

    def say(line: str) -> None:
        print(time.strftime("%Y-%m-%dT%H:%M:%S"), line, flush=True)
        tell(line)

    def told(line: str) -> None:
        tell(line)
        progress.close()

    try:
        run_supervisor(Layout(Path(folder)), api_port=int(api_port), secure=secure == "1", say=say, told=told)
    except Fatal as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
