"""Training steps of normalizer-free and of batch-normalized networks.

    python benchmarks/batch_norm.py

NF-ResNet-50 is compared with ResNet50V2 of keras.applications, and NFNet-F1 with
EfficientNet-B7, the latter two at the image sizes of the papers. There are no targets.
"""

import argparse
import statistics
import sys

from turns import Process, machine, take_turns, times_as_fast

# (network, size) of the normalizer-free and of the other network; batch sizes.
PAIRS = [
    (("NFResNet50", 224), ("ResNet50V2", 224), [2, 8, 32]),
    # The papers' image sizes. The NFNet paper reports a step 8.7 times as fast as that
    # of B7, on a TPU.
    (("NFNetF1", 224), ("EfficientNetB7", 600), [1]),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(machine())
    print("\n| | batch | size | seconds per image | peak MiB | times as fast |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for *pair, batches in PAIRS:
        for batch in batches:
            tasks = [
                {"kind": "train", "batch": batch, "network": network, "size": size}
                for network, size in pair
            ]
            processes = [Process("measure_ours.py", task) for task in tasks]
            take_turns(processes, rounds, calls=2)
            ratio = statistics.median(times_as_fast(*processes))
            for task, process, shown in zip(tasks, processes, (f"{ratio:.2f}", "1")):
                print(
                    f"| {task['network']} | {batch} | {task['size']} "
                    f"| {process.seconds / batch:.3f} "
                    f"| {process.memory['peak']:.0f} | {shown} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
