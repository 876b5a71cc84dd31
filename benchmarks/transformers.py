"""Inference of a vision transformer with and without normalization.

    python benchmarks/transformers.py

The transformer has the size of ViT-S/16 at 224 pixels. Constants, and the scales and offsets
of dynamic functions, are folded into the layers after them. There are no targets.
"""

import argparse
import statistics
import sys

from turns import Process, machine, take_turns, times_as_fast

# Row of the table: the normalization of the original, and what replaces it.
ROWS = {
    "layer normalization": ("layer", None),
    "RMS normalization": ("RMS", None),
    "constants": ("layer", "constants"),
    "dynamic tanh": ("layer", "dynamic_tanh"),
    "dynamic erf": ("layer", "dynamic_erf"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(machine())
    print("\n| normalization | batch | ms per example | times as fast as the first |")
    print("| --- | ---: | ---: | ---: |")
    for batch in (1, 8):
        processes = [
            Process(
                "measure_transformer.py",
                {"normalization": original, "replaced_by": replaced_by, "batch": batch},
            )
            for original, replaced_by in ROWS.values()
        ]
        take_turns(processes, rounds, calls=4)
        for name, process in zip(ROWS, processes, strict=True):
            ratio = statistics.median(times_as_fast(process, processes[0]))
            milliseconds = 1000 * process.seconds / batch
            print(
                f"| {name} | {batch} | {milliseconds:.1f} | {ratio:.2f} |", flush=True
            )


if __name__ == "__main__":
    sys.exit(main())
