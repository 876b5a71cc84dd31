"""Speed, memory and correctness on one GPU in bfloat16, compared with timm on PyTorch.

    python benchmarks/gpu.py

This package runs on Keras's JAX backend. Measurements are made in order of importance.
Each is printed and saved as soon as it is complete; the error of one that fails is saved
instead. The same command continues where an earlier one stopped. The exit status is 1 if
a target is missed or a measurement has failed.
"""

import argparse
import contextlib
import datetime
import hashlib
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import gpu_results
from gpu_bench import Bench
from gpu_list import measurements
from turns import HERE

ROOT = HERE.parent


def run(entry, bench, left):
    """Run one measurement and return its result; stop it after `left` seconds."""
    stop = threading.Timer(left, bench.kill)
    stop.start()
    start = time.monotonic()
    try:
        bench.start()
        result = entry.run(bench)
    except RuntimeError as error:
        result = {"error": str(error)}
    finally:
        stop.cancel()
    took = time.monotonic() - start
    if entry.kind != "correctness" and not bench.judges_speed:
        for target in result.get("targets", ()):
            target["met"] = None
    if took >= left:
        result = {"error": f"Stopped after {took:.0f} s: the time was used up."}
    return {"kind": entry.kind, "took": took, **result}


def has_failed(result):
    return "error" in result or any("error" in row for row in result.get("rows", ()))


def misses(result):
    """Return the targets that a result misses."""
    return [target for target in result.get("targets", ()) if target["met"] is False]


def show(name, result):
    print(f"\n## {name} ({result['took']:.0f} s)\n")
    for failed in (result, *result.get("rows", ())):
        if "error" in failed:
            print(f"Failed{': ' + failed['label'] if 'label' in failed else ''}")
            print(failed["error"], "\n")
    if "error" not in result:
        print("\n".join(gpu_results.table(result["kind"], [result])), "\n")
    for target in result.get("targets", ()):
        verdict = {True: "met", False: "MISSED", None: "not judged on a CPU"}
        print(
            f"- {target['what']}: {target['value']:.3g}, {target['bound']} "
            f"{target['limit']:g}: {verdict[target['met']]}"
        )
    sys.stdout.flush()


def code():
    """Return a digest of the measured code."""
    files = [*(ROOT / "keras_nfnets").rglob("*.py"), *HERE.glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def commit():
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def new_document(said, smoke):
    """Return the content of a results file before any measurement."""
    versions = said["ours"]["versions"] | said.get("timm", {}).get("versions", {})
    return {
        "device": said["ours"]["device"],
        "date": datetime.date.today().isoformat(),
        "smoke": smoke,
        "versions": versions,
        "code": code(),
        "commit": commit(),
        "measurements": {},
    }


def earlier(path, document):
    """Load the earlier results in `path`; return `document` if there are none.

    Raises:
        ValueError: they are of another device, other versions or other code, or only one
            of both is a smoke run.
    """
    if not path.exists():
        return document
    found = gpu_results.load(path)
    for key in ("device", "smoke", "versions", "code"):
        if found[key] != document[key]:
            raise ValueError(
                f"{path} has results of another {key}; choose another --output. "
                f"Expected: {document[key]}. Received: {found[key]}"
            )
    return found


def has_module(python, name):
    """Whether an interpreter can find a module, without importing it."""
    code = (
        f"import importlib.util as u; raise SystemExit(u.find_spec({name!r}) is None)"
    )
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="JSON file (default: in benchmarks/results, named for card and date)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=480,
        help="a measurement starts only if it is likely to end within these (480)",
    )
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        help="folder that keeps compiled programs for later runs on this machine",
    )
    parser.add_argument(
        "--timm",
        default=sys.executable,
        metavar="PYTHON",
        help="a Python that has timm and PyTorch (default: this one)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="run everything on CPUs with tiny networks and images; judge no speed",
    )
    return parser, parser.parse_args()


def default_output(document):
    if document["smoke"]:
        return pathlib.Path(tempfile.mkdtemp()) / "gpu-smoke.json"
    card = re.sub(r"\W+", "-", document["device"].lower()).strip("-")
    return gpu_results.FOLDER / f"{card}-{document['date']}.json"


def measure_all(entries, bench, document, path, end):
    """Run what `document` lacks; return names of those left out for lack of time."""
    left_out = []
    for entry in entries:
        known = document["measurements"].get(entry.name)
        if known is None or has_failed(known):
            left = end - time.monotonic()
            if left < entry.estimate:
                left_out.append(entry.name)
                continue
            result = run(entry, bench, left)
            document["measurements"][entry.name] = result
            gpu_results.save(document, path)
            show(entry.name, result)
        elif entry.kind == "ceilings":
            bench.peak_flops = known["values"]["matmul_tflops"] * 1e12
    return left_out


def main():
    parser, arguments = parse_arguments()
    end = time.monotonic() + arguments.seconds
    # Handle SIGTERM like Ctrl-C, so that the workers are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    has_timm = has_module(arguments.timm, "timm")
    if not has_timm and not arguments.smoke:
        parser.error(f"{arguments.timm} has no timm; name a Python that has: --timm")
    cache = arguments.compilation_cache
    with contextlib.ExitStack() as stack:
        if arguments.smoke and not cache:
            cache = stack.enter_context(tempfile.TemporaryDirectory())
        scripts = {"ours": ("measure_jax.py", sys.executable)}
        scripts["timm"] = ("measure_torch.py", arguments.timm)
        if not has_timm:
            scripts["timm"] = scripts["ours"]
        bench = Bench(scripts, arguments.smoke, cache)
        stack.callback(bench.kill)
        said = bench.start()
        if said["ours"]["platform"] == "cpu" and not arguments.smoke:
            parser.error("JAX finds no accelerator here; --smoke runs on CPUs")
        document = new_document(said, arguments.smoke)
        path = arguments.output or default_output(document)
        try:
            document = earlier(path, document)
        except ValueError as error:
            parser.error(str(error))
        entries = measurements(arguments.smoke, has_timm)
        try:
            left_out = measure_all(entries, bench, document, path, end)
        except KeyboardInterrupt:
            print(f"\nInterrupted. What was measured is in {path}", file=sys.stderr)
            return 130
    return conclude(document, left_out, path)


def conclude(document, left_out, path):
    """Print missing and failed measurements and missed targets; return exit status."""
    measured = document["measurements"]
    print(f"\nResults: {path}")
    if left_out:
        print(f"Not measured for lack of time: {'; '.join(left_out)}.")
        print("The same command continues with these.")
    failed = [name for name, result in measured.items() if has_failed(result)]
    for name in failed:
        print(f"Failed: {name}", file=sys.stderr)
    missed = [(name, t) for name, result in measured.items() for t in misses(result)]
    for name, target in missed:
        print(
            f"Falls short: {name}: {target['what']} {target['value']:.3g}, "
            f"{target['bound']} {target['limit']:g} wanted",
            file=sys.stderr,
        )
    return int(bool(failed or missed))


if __name__ == "__main__":
    sys.exit(main())
