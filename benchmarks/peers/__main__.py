"""`python -m benchmarks.peers setup`: installs what `benchmarks.side_by_side` compares with, each by itself."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.environments import FOLDER, PEERS, install, is_installed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=("setup", "list"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the environments lie (%(default)s)")
    parser.add_argument("--only", choices=[peer.name for peer in PEERS], help="one peer instead of all")
    options = parser.parse_args()
    failed = False
    for peer in PEERS:
        if options.only not in (None, peer.name):
            continue
        if options.command == "setup":
            print(f"{peer.title}: installing {' '.join(peer.packages)}", flush=True)
            try:
                install(peer, options.folder)
            except subprocess.CalledProcessError as error:
                failed = True
                print(f"{peer.title}: {error}", file=sys.stderr)
        print(f"{peer.title}: {'installed' if is_installed(peer, options.folder) else 'not installed'}")
    print("openpi's server is read from a checkout of its public repository: git clone it, then give --openpi PATH")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
