"""Growth of build time, step time and memory with the network and the batch size.

    python benchmarks/growth.py --plot=growth.png

Each row is measured in its own process. The exit status is 1 if NFNet-F0 takes more than
5 s to build or 30 s for its first step, or NFNet-F7 more than 30 s to build.
"""

import argparse
import sys

from turns import Process, machine, take_turns

# At this size a training step of the largest network fits into 24 GB.
SIZE = 96
NETWORKS = [f"NFNetF{n}" for n in range(8)]
BATCHES = [1, 2, 4, 8, 16, 32]
LIMITS = {("NFNetF0", "built"): 5, ("NFNetF0", "first"): 30, ("NFNetF7", "built"): 30}


def measure(network, batch, size=SIZE):
    """Measure seconds to build, of the first step and of a later step; peak MiB."""
    task = {"kind": "train", "network": network, "batch": batch, "size": size}
    process = Process("measure_ours.py", task)
    take_turns([process], rounds=1, calls=3)
    return {
        "network": network,
        "batch": batch,
        "size": size,
        "built": process.ready["built"],
        "first": process.ready["first"],
        "step": process.seconds,
        "memory": process.memory["peak"],
    }


def draw(by_network, by_batch, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2)
    series = (
        (by_network, "network", "NFNet-F0 to F7, batch size 1"),
        (by_batch, "batch", "NFNet-F0, by batch size"),
    )
    for (rows, key, title), (above, below) in zip(series, axes.T):
        ticks = [str(row[key]).removeprefix("NFNet") for row in rows]
        for name, label in (
            ("built", "building"),
            ("first", "first step"),
            ("step", "later step"),
        ):
            above.plot(ticks, [row[name] for row in rows], marker="o", label=label)
        above.set(title=f"{title}, {SIZE} x {SIZE}", ylabel="seconds", ylim=(0, None))
        above.legend()
        below.plot(
            ticks, [row["memory"] / 1024 for row in rows], marker="o", color="tab:gray"
        )
        below.set(xlabel=key, ylabel="peak memory, GiB", ylim=(0, None))
        for axis in (above, below):
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", default="growth.png", help="file for the plots")
    arguments = parser.parse_args()
    print(machine())
    print("\n| network | batch | size | build | first step | later step | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    short = []

    def row(*settings):
        found = measure(*settings)
        print(
            "| {network} | {batch} | {size} | {built:.1f} s | {first:.1f} s "
            "| {step:.2f} s | {memory:.0f} |".format(**found),
            flush=True,
        )
        for (network, figure), limit in LIMITS.items():
            if found["network"] == network and found[figure] > limit:
                short.append(f"{network}: {found[figure]:.1f} s ({figure})")
        return found

    row("NFNetF0", 8, 192)
    by_network = [row(network, 1) for network in NETWORKS]
    by_batch = [row("NFNetF0", batch) for batch in BATCHES]
    draw(by_network, by_batch, arguments.plot)
    for line in short:
        print(f"\nFalls short: {line}", file=sys.stderr)
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
