"""Ours beside what a user would pick instead: same policy, weights and threads, one after another in one run.

    python -m benchmarks.peers setup
    git clone https://github.com/Physical-Intelligence/openpi /some/where
    python -m benchmarks.side_by_side --openpi /some/where --policy tabletop

Closed loop: each client asks again as soon as it is answered. A peer that is not installed is left out, and the report
says so.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

from benchmarks import machine, report
from benchmarks.devices import DEVICES, SIMULATED
from benchmarks.frames import View, views
from benchmarks.layers import share_within, stages_ms, summarise
from benchmarks.load import OK, Sample, closed_loop, steady_rate
from benchmarks.measure import DEADLINE_MS, progress_line
from benchmarks.outcome_log import OutcomeLog
from benchmarks.own_stack import Deployment, Target, own_stack
from benchmarks.peers.clients import CLIENTS, PeerClients, pixels
from benchmarks.peers.environments import FOLDER, PEERS, Peer, is_installed, version_of
from benchmarks.peers.policy_host import POLICIES, PolicyHost, Seen, card_of
from benchmarks.peers.serving import Serving, missing
from benchmarks.rest import RestClients
from benchmarks.side_tables import OURS, Row, markdown
from gpu_consumers.devices import choose_device, device_name, release_memory
from runtime.errors import Unavailable
from runtime.settings import Settings

#: The picture that every server gets: as JPEG over our REST and Ray's, as raw pixels over the WebSockets.
SIDE_PX, JPEG_BYTES = 224, 20_000
_WARM_UP_S = 2.0
#: Of the warm-up: many, as a broker's JVM compiles its hot paths only after thousands of records.
_WARM_UP_CLIENTS = 32


def main() -> int:
    options = _parser().parse_args()
    # So that a peer's server ends with this program also where it is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    here = machine.describe()
    pictures = views(8, 1, JPEG_BYTES, SIDE_PX, SIDE_PX)
    raw = {} if options.no_raw else raw_loop(options.policy, pictures, options.seconds)
    rows: list[Row] = []
    left_out: list[str] = []

    def leave_out(peer: Peer, reason: object) -> None:
        left_out.append(f"{peer.title} was left out: {reason}.")
        say(left_out[-1])

    with ExitStack() as started:
        waiting = {}
        for peer in PEERS:
            if reason := missing(peer, folder=options.folder, openpi=options.openpi):
                leave_out(peer, reason)
            else:
                waiting[peer] = Serving(peer, options.policy, folder=options.folder, openpi=options.openpi, say=say)
                if options.together:
                    started.enter_context(waiting[peer])
        if not options.peers_only:
            rows += _ours(options, pictures)
        for peer, server in waiting.items():
            try:
                rows += _peer(peer, server, options, pictures)
            except Unavailable as error:
                leave_out(peer, error)
    installed = [peer for peer in PEERS if is_installed(peer, options.folder)]
    versions = {peer.title: version for peer in installed if (version := version_of(peer, options.folder))}
    notes = [
        f"Policy: {_policy_label(options.policy)}. Servers run one after another, each with every core; "
        f"the load generator shares them. Picture: {SIDE_PX}x{SIDE_PX}, a JPEG of {JPEG_BYTES} bytes to us and Ray, "
        "raw pixels to the others, which so decode nothing. Only ours logs, gates and authenticates.",
        'Column "machine": what a million additions in Python took right before a row. Compare rows where it is alike.',
        *[f"{title}: {version}." for title, version in versions.items()],
        *left_out,
    ]
    text = markdown(
        rows,
        raw,
        report.heading("Side by side", here, ["python", "-m", "benchmarks.side_by_side", *sys.argv[1:]], notes),
    )
    say("\n" + text)
    name = options.name or f"{here.date}-side-by-side-{Path(options.policy).stem}"
    document = {"machine": asdict(here), "notes": notes, "raw": raw, "rows": [asdict(row) for row in rows]}
    say(f"saved: {report.save(name, text, document, options.out)}")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def raw_loop(policy: str, pictures: Sequence[View], seconds: float) -> dict[int, float]:
    """Batch size -> inferences a second of the policy alone, in a loop: no server can be faster."""
    host = PolicyHost(policy)
    seen = [Seen(v.instruction, pixels(v.jpegs[0]), np.asarray(v.state, np.float32)) for v in pictures]
    rates = {}
    for size in host.card.batch_sizes:
        batch = [host.prepare(seen[i % len(seen)]) for i in range(size)]
        host.infer(batch)
        began_s, done = time.perf_counter(), 0
        while (elapsed_s := time.perf_counter() - began_s) < seconds / 2 or not done:
            host.infer(batch)
            done += size
        rates[size] = done / (time.perf_counter() - began_s)
        say(f"raw loop, batches of {size}: {rates[size]:.1f}/s over {elapsed_s:.1f} s")
    del host
    release_memory()
    return rates


def _ours(options: argparse.Namespace, pictures: Sequence[View]) -> list[Row]:
    card = card_of(options.policy)
    file = Path(options.policy) if options.policy not in POLICIES else None
    deployment = Deployment(card.deployment, DEVICES.get(options.policy), card=file)
    with own_stack((deployment,), say, gates=options.gates) as target:

        def connect() -> RestClients:
            return RestClients(target.api, target.api_key, model=deployment.model, views=pictures, ttl_ms=60_000)

        _warm_up(options.warm_up, connect)
        return [_staged(count, options.seconds, connect, target) for count in options.clients]


def _staged(count: int, seconds: float, connect: Callable[[], RestClients], target: Target) -> Row:
    """Ours, with what each stage of its requests took."""
    log = OutcomeLog(target.settings)
    row, answered = _measure(OURS, count, seconds, connect)
    times = log.read([sample.answer.request_id for sample in answered])
    stages = [stages_ms(s, times[s.answer.request_id]) for s in answered if s.answer.request_id in times]
    sizes = Counter(sample.answer.batch_size for sample in answered)
    return replace(
        row,
        stages_ms={name: quantiles.p50 for name, quantiles in summarise(stages).items()},
        batches={size: round(number / size) for size, number in sorted(sizes.items()) if size},
    )


def _peer(peer: Peer, server: Serving, options: argparse.Namespace, pictures: Sequence[View]) -> list[Row]:
    with server:
        connect = partial(CLIENTS[peer.name], server.url(), pictures)
        _warm_up(options.warm_up, connect)
        return [_measure(peer.title, count, options.seconds, connect)[0] for count in options.clients]


def _warm_up(seconds: float, connect: Callable[[], RestClients | PeerClients]) -> None:
    """The same for every server: some compile or load only under load."""

    async def load() -> None:
        async with connect() as clients:
            send = clients.send
            # A server may say that it is healthy while its model is still loading.
            await asyncio.wait_for(send(30_000, 0), 60.0)
            await closed_loop(
                _WARM_UP_CLIENTS, seconds, lambda robot, step: send(robot + 20_000, step), progress_line(say)
            )

    if seconds > 0:
        say(f"warming up for {seconds:g} s")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(load())


def _measure(
    server: str, count: int, seconds: float, connect: Callable[[], RestClients | PeerClients]
) -> tuple[Row, list[Sample]]:
    """The row, and what was answered."""

    async def load() -> list[Sample]:
        async with connect() as clients:
            progress = progress_line(say)
            await closed_loop(count, _WARM_UP_S, clients.send, progress)
            # Robots of the measured part are new ones to the server, as steps begin anew.
            return await closed_loop(count, seconds, lambda robot, step: clients.send(robot + 10_000, step), progress)

    pace_ms = machine.pace_ms()
    say(f"{server}: {count} clients, {seconds:g} s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        samples = runner.run(load())
    answered = [sample for sample in samples if sample.answer.code == OK]
    rate = steady_rate(samples, min(sample.sent_s for sample in samples) + seconds)
    p50_ms, p99_ms = np.percentile([s.latency_ms for s in answered], [50, 99]) if answered else (np.nan, np.nan)
    within = share_within(samples, DEADLINE_MS)
    row = Row(server, count, rate, float(p50_ms), float(p99_ms), within, len(samples) - len(answered), pace_ms)
    say(f"  {row.rate:.1f}/s, p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f} ms, {row.failed} failed")
    return row, answered


def _policy_label(policy: str) -> str:
    device = DEVICES.get(policy)
    if device is None:
        card = card_of(policy)
        runs_on = device_name(choose_device(Settings(_env_file=None), card))
        return f"{card.title}, on {'one thread' if runs_on == 'cpu' else runs_on}"
    pace = f"{device.per_item_ms:.2f} ms x n + {device.base_ms:.2f} ms, best {device.best_rate:.1f}/s"
    return f"{SIMULATED} {device.name}, {pace} ({device.source})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--policy", default="tabletop", help=f"one of {', '.join(POLICIES)}, or a card's file with weights beside it")
    add("--gates", type=int, default=1, help="gate processes of our own stack")
    add("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    add("--seconds", type=float, default=10.0, help="of each number of clients")
    add("--warm-up", type=float, default=20.0, help="seconds of load on each server before it is measured")
    add("--openpi", type=Path, help="a checkout of Physical-Intelligence/openpi")
    add("--folder", type=Path, default=FOLDER, help="where `benchmarks.peers setup` put the environments")
    add("--together", action="store_true", help="let all servers load at once; each is still measured by itself")
    add("--no-raw", action="store_true", help="leave the policy alone in a loop out")
    add("--peers-only", action="store_true", help="leave ours out")
    add("--out", type=Path, default=report.RESULTS)
    add("--name", help="file name of the report, without ending")
    return parser


if __name__ == "__main__":
    sys.exit(main())
