"""`vlastream bench`: measures the pipeline and says where every millisecond goes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from benchmarks import devices, goals, machine, plots, report, scenarios
from benchmarks.measure import Frame, Measured, measure, warm_up
from benchmarks.own_stack import TABLETOP, Deployment, Target, own_stack, target_of
from benchmarks.scenarios import Group, Scenario
from runtime.errors import Fatal, VlastreamError
from runtime.settings import DEFAULT_STACK_FILE
from runtime.stack.layout import read_json


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if everything was measured, whether goals are met or not."""
    options = _parser().parse_args(arguments)
    words = list(arguments or [])
    here = machine.describe()
    frame = Frame(options.frame_bytes, *options.frame_px)
    results: list[Measured] = []
    groups = _groups(options)
    try:
        for group in groups:
            with _stack(group, options) as target:
                warm_up(group.deployments[0], target, frame, options.warm_up, say)
                results += [measure(scenario, target, frame, say) for scenario in group.scenarios]
    except (VlastreamError, TimeoutError) as error:
        say(f"error: {error}")
        if not results:
            return 1
        say("what was measured before is reported")
    verdicts = goals.verdicts(results)
    name = options.name or f"{here.date}-bench-{options.set or 'load'}"
    command = ["vlastream", "bench", *words]
    drawn = plots.draw(results, name, options.out)
    notes = [
        f"Frames: JPEG, {frame.bytes} bytes, {frame.width_px}x{frame.height_px}. "
        f"Each stack was loaded for {options.warm_up:g} s before."
    ]
    if any(r.scenario.deployment.device not in (None, devices.INSTANT) for r in results):
        used = {r.scenario.deployment.device for r in results} - {None, devices.INSTANT}
        notes += [
            f"{devices.SIMULATED.capitalize()} {d.name}: {d.per_item_ms:.2f} ms x n + {d.base_ms:.2f} ms ({d.source})."
            for d in used
            if d is not None
        ]
    title = {"main": "The pipeline's speed"}.get(options.set, f"The pipeline under load: {options.set or 'one load'}")
    text = report.markdown(results, verdicts, report.heading(title, here, command, notes), drawn)
    say("\n" + text)
    path = report.save(name, text, report.document(results, verdicts, here, command), options.out)
    say(f"saved: {path}, its .json and {len(drawn)} plots")
    return 0


def _groups(options: argparse.Namespace) -> tuple[Group, ...]:
    if options.set:
        return scenarios.named(options.set, options.seconds)
    device = devices.DEVICES.get(options.policy)
    model = options.model or (TABLETOP if device is None else device.name)
    deployment = Deployment(model, device, options.cameras, options.workers)
    hz = None if options.hz == 0 else options.hz
    scenario = Scenario(
        name=f"{model}, {options.robots} robots",
        deployment=deployment,
        robots=options.robots,
        hz=hz,
        seconds=options.seconds,
        transport=options.transport,
        ttl_ms=options.ttl_ms,
        goal="overhead" if device is devices.INSTANT else "",
    )
    return (Group((scenario,)),)


def _stack(group: Group, options: argparse.Namespace) -> AbstractContextManager[Target]:
    """The stack that runs here, or a fresh one with what the group needs."""
    if not options.running:
        return own_stack(group.deployments, say, gates=options.gates)
    document = read_json(options.running)
    if document is None:
        raise Fatal(f"no stack runs with {options.running}: start one with `vlastream up`, or leave --running out")
    return nullcontext(target_of(document))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlastream bench",
        description="Measure the pipeline: a set of scenarios, or one load (--robots, --hz, ...) without --set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--set", choices=scenarios.SETS, help="a set of scenarios instead of one load")
    add("--seconds", type=float, default=20.0, help="of each scenario")
    add("--warm-up", type=float, default=20.0, help="seconds of load on each stack before it is measured")
    add("--robots", type=int, default=1)
    add("--hz", type=float, default=5.0, help="requests a second of each robot; 0: closed loop, as fast as answered")
    add("--cameras", type=int, choices=(1, 2, 3), default=1, help="frames in a request; tabletop has one camera")
    add("--transport", choices=("rest", "direct"), default="rest", help="REST, or produced to Kafka by the robots")
    add(
        "--policy",
        choices=("tabletop", *devices.DEVICES),
        default="tabletop",
        help="the real tabletop policy, or a simulated device",
    )
    add("--workers", type=int, default=1, help="GPU consumers of the own stack")
    add("--gates", type=int, default=1, help="gate processes of the own stack")
    add("--ttl-ms", type=int, default=10_000)
    add("--frame-bytes", type=int, default=50_000)
    add("--frame-px", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    add(
        "--running",
        type=Path,
        nargs="?",
        const=DEFAULT_STACK_FILE,
        help="use the stack that runs with this stack.json, instead of a fresh one",
    )
    add("--model", help="model to ask for, with --running")
    add("--out", type=Path, default=report.RESULTS, help="folder of the report")
    add("--name", help="file name of the report, without ending")
    return parser
