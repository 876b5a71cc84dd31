"""NFNet-F0 to F3 on an accelerator, in bfloat16, beside timm under `torch.compile`.

    KERAS_BACKEND=jax python benchmarks/gpu.py --peak_tflops=989

Training steps (AGC, Nesterov momentum) and inference, folded, at the papers' sizes, as
milliseconds and as the share of the card's peak (which its data sheet says, without
sparsity). timm and PyTorch must be installed beside JAX; channels_last, as fast as it
gets. The two take turns in rounds.
"""

import argparse
import statistics
import sys

from turns import Process, take_turns, times_as_fast

NETWORKS = ["NFNetF0", "NFNetF1", "NFNetF2", "NFNetF3"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peak_tflops", type=float, help="of bfloat16, dense")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    batch = arguments.batch_size
    print("| | batch | ours, ms | timm, ms | times as fast | ours, share of peak |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for training in (True, False):
        for name in NETWORKS:
            task = {"name": name, "batch": batch, "training": training}
            processes = [
                Process("measure_gpu.py", {**task, "package": package})
                for package in ("ours", "timm")
            ]
            take_turns(processes, arguments.rounds, calls=10)
            mine, theirs = processes
            # The gradients of kernels and inputs cost as much as going forward, each.
            flops = 2 * mine.ready["flops"] * batch * (3 if training else 1)
            share = "?"
            if arguments.peak_tflops:
                share = f"{flops / mine.seconds / arguments.peak_tflops / 1e12:.0%}"
            print(
                f"| {name} {'training step' if training else 'inference, folded'} "
                f"| {batch} | {1e3 * mine.seconds:.1f} | {1e3 * theirs.seconds:.1f} "
                f"| {statistics.median(times_as_fast(mine, theirs)):.2f} | {share} |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
