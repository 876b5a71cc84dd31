"""Inference latency of networks of the zoo, for the table in the documentation.

    python benchmarks/zoo_latency.py [NETWORK ...]

Each network is folded, compiled by XLA, and given one image of its test size, in its own
process. The script writes docs/latency.csv with one row per network. If a network was
measured before on the same machine with the same versions, the script keeps the faster
row, as other load on the machine can only slow a network down.
"""

import csv
import importlib.metadata
import pathlib
import statistics
import sys

from turns import Process, machine

import keras_nfnets
from keras_nfnets.pretrained import find_network

OUT = pathlib.Path(__file__).parent.parent / "docs" / "latency.csv"
# Some networks of each family that take a few minutes and a few gigabytes in all.
NETWORKS = (
    *("NFResNet26", "NFResNet50", "NFResNet101"),
    *("NFRegNetB0", "NFRegNetB2", "NFRegNetB4"),
    *("NFNetTiny", "NFNetTest", "NFNetL0"),
    *("ECANFNetL0", "ECANFNetL1", "ECANFNetL2"),
    *("NFNetF0", "NFNetF1", "NFNetF2", "NFNetF3"),
)
ROUNDS, CALLS = 7, 3


def measure(name):
    """Measure a network; return its row of the table, a dict of str and numbers."""
    network = find_network(name)
    size = network.constructor.test_size
    task = {"network": network.name, "kind": "inference", "batch": 1, "fold": True}
    task |= {"size": size, "compiled": True}
    process = Process("measure_ours.py", task)
    for _ in range(ROUNDS):
        process.measure(CALLS)
    process.close()
    laps = [1e3 * seconds for seconds in process.laps]
    versions = ("tensorflow", "keras")
    return {
        "network": network.name,
        "size": str(size),
        "milliseconds": f"{statistics.median(laps):.1f}",
        "least": f"{min(laps):.1f}",
        "most": f"{max(laps):.1f}",
        "peak_mib": round(process.memory["peak"]),
        "machine": machine(),
        "versions": ", ".join(
            [
                *(f"{name} {importlib.metadata.version(name)}" for name in versions),
                f"keras_nfnets {keras_nfnets.__version__}",
            ]
        ),
    }


def main():
    rows = {}
    if OUT.exists():
        with open(OUT, newline="") as file:
            rows = {row["network"]: row for row in csv.DictReader(file)}
    for name in sys.argv[1:] or NETWORKS:
        row = measure(name)
        print(*row.values(), sep="  ", flush=True)
        rows[row["network"]] = _faster(row, rows.get(row["network"]))
        with open(OUT, "w", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


def _faster(new, old):
    same = old and all(new[key] == old[key] for key in ("machine", "versions", "size"))
    if same and float(old["milliseconds"]) < float(new["milliseconds"]):
        return old
    return new


if __name__ == "__main__":
    main()
