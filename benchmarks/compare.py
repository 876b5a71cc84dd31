"""Time and memory of networks of this package compared with other implementations.

    python benchmarks/compare.py --timm=ENV/bin/python --kecam=ENV/bin/python

Each comparison is an entry of `COMPARISONS`. Its contestants measure in alternation for
several rounds, and the median over the rounds of the ratio of their times is compared with
a target. The exit status is 1 if a target is missed; every figure is printed either way.
"""

import argparse
import statistics
import sys
import typing

from turns import Process, machine, take_turns, times_as_fast


class Contestant(typing.NamedTuple):
    """One process: its implementation, and the task that it measures."""

    peer: str
    label: str
    task: dict


class Comparison(typing.NamedTuple):
    """Contestants, ours first, and targets relative to the best of each peer."""

    name: str
    contestants: list
    # peer -> smallest ratio of the time of its fastest contestant to that of ours
    faster: dict
    # largest ratio of our fastest contestant's memory to that of timm's, or None
    memory: float | None = None
    # whether the ratio leaves out the memory that importing takes
    memory_above_import: bool = False


def _training(network, timm, batch, size, kecam=None, **demands):
    task = {"kind": "train", "batch": batch, "size": size}
    contestants = [Contestant("ours", network, {**task, "network": network})]
    for layout in ("nchw", "channels_last"):
        settings = {"network": timm, "layout": layout}
        contestants.append(Contestant("timm", f"{timm} {layout}", {**task, **settings}))
    faster = {"timm": 1.0}
    if kecam is not None:
        contestants.append(Contestant("kecam", kecam, {**task, "network": kecam}))
        faster["kecam"] = 4.0
    name = f"training step, {network}, batch {batch}, {size} x {size}"
    return Comparison(name, contestants, faster, **demands)


def _inference(fold, batch, faster):
    task = {"kind": "infer", "batch": batch, "size": 256}
    how = "folded" if fold else "as it trains"
    contestants = []
    for compiled in (False, True):
        xla = ", XLA" if compiled else ""
        ours = {"network": "NFNetF0", "fold": fold, "compiled": compiled}
        contestants.append(Contestant("ours", f"{how}{xla}", {**task, **ours}))
    for peer in faster:
        if peer == "timm":
            for layout in ("nchw", "channels_last"):
                settings = {"network": "dm_nfnet_f0", "layout": layout}
                contestants.append(Contestant("timm", layout, {**task, **settings}))
        else:
            for compiled in (False, True):
                settings = {"network": "NFNetF0", "compiled": compiled}
                label = "XLA" if compiled else "graph"
                contestants.append(Contestant("kecam", label, {**task, **settings}))
    name = f"inference, NFNetF0 {how}, batch {batch}, 256 x 256"
    return Comparison(name, contestants, faster)


COMPARISONS = {
    "train_f0": _training(
        "NFNetF0", "dm_nfnet_f0", 8, 192, kecam="NFNetF0", memory=1.25
    ),
    # TensorFlow itself takes 0.7 GB, half of the memory of these runs; PyTorch itself
    # takes a quarter.
    "train_resnet": _training(
        "NFResNet50", "nf_resnet50", 16, 128, memory=1.25, memory_above_import=True
    ),
    "train_l0": _training(
        "ECANFNetL0", "eca_nfnet_l0", 16, 128, memory=1.25, memory_above_import=True
    ),
    "infer_1": _inference(True, 1, {"timm": 1.4}),
    "infer_8": _inference(True, 8, {"timm": 1.05}),
    "infer_unfolded_1": _inference(False, 1, {"kecam": 1.0}),
    "infer_unfolded_8": _inference(False, 8, {"kecam": 1.0}),
}


def run(comparison, pythons, rounds, calls):
    """Print a table of one comparison; return the missed targets, a list of str."""
    print(f"\n## {comparison.name}\n")
    entrants = [
        (c, Process(f"measure_{c.peer}.py", c.task, pythons[c.peer]))
        for c in comparison.contestants
        if c.peer in pythons
    ]
    take_turns([process for _, process in entrants], rounds, calls)
    print("| | | seconds (median of rounds) | least | peak MiB | of it importing |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for contestant, process in entrants:
        print(
            f"| {contestant.peer} | {contestant.label} "
            f"| {process.seconds:.3f} | {min(process.laps):.3f} "
            f"| {process.memory['peak']:.0f} | {process.memory['imported']:.0f} |"
        )
    print(flush=True)
    best = {}
    for contestant, process in sorted(entrants, key=lambda e: -e[1].seconds):
        best[contestant.peer] = process
    return list(_verdicts(comparison, best))


def _verdicts(comparison, best):
    """Print ratios of `best`, each peer's fastest process; yield missed targets."""
    ours = best["ours"]
    for peer, wanted in comparison.faster.items():
        if peer not in best:
            yield f"{comparison.name}: {peer} was not measured"
            continue
        ratios = times_as_fast(ours, best[peer])
        ratio = statistics.median(ratios)
        text = f"{ratio:.2f} times as fast as {peer} (wanted: {wanted})"
        print(f"- {text}; rounds {', '.join(f'{r:.2f}' for r in ratios)}")
        if ratio < wanted:
            yield f"{comparison.name}: {text}"
    if comparison.memory is None or "timm" not in best:
        return
    for above_import in (False, True):
        mine, theirs = (
            best[peer].memory["peak"] - above_import * best[peer].memory["imported"]
            for peer in ("ours", "timm")
        )
        what = "memory above importing" if above_import else "memory"
        decides = above_import == comparison.memory_above_import
        limit = f" (at most {comparison.memory})" if decides else ""
        text = f"{mine / theirs:.2f} times timm's {what}{limit}"
        print(f"- {text}", flush=True)
        if decides and mine / theirs > comparison.memory:
            yield f"{comparison.name}: {text}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=f"COMPARISON: {', '.join(COMPARISONS)}; by default all of them.",
    )
    parser.add_argument("comparison", nargs="*", metavar="COMPARISON")
    parser.add_argument("--timm", help="a Python that has timm and PyTorch")
    parser.add_argument("--kecam", help="a Python that has kecam and tf_keras")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3, help="calls per round")
    arguments = parser.parse_args()
    unknown = set(arguments.comparison) - set(COMPARISONS)
    if unknown:
        parser.error(f"no comparison {', '.join(sorted(unknown))}")
    pythons = {"ours": sys.executable, "timm": arguments.timm, "kecam": arguments.kecam}
    pythons = {peer: python for peer, python in pythons.items() if python}
    print(machine())
    short = []
    for name in arguments.comparison or COMPARISONS:
        short += run(COMPARISONS[name], pythons, arguments.rounds, arguments.calls)
    for line in short:
        print(f"\nFalls short: {line}", file=sys.stderr)
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
