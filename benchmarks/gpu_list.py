"""Measurements of gpu.py in order of importance, and their targets."""

import functools
import typing

from gpu_bench import Contestant


class Measurement(typing.NamedTuple):
    """One measurement of gpu.py.

    Attributes:
        name: str. Key in the JSON file.
        kind: str. Table that it belongs to; see gpu_results.py.
        estimate: float. Expected duration in seconds.
        run: function of a `Bench` that returns a dict: `values` or `rows`, and
            `targets`.
    """

    name: str
    kind: str
    estimate: float
    run: typing.Callable


def _targets(*targets):
    """Return targets as dicts, from `(what, value, "at least" or "at most", limit)`.

    Values that could not be measured (None) are left out; their rows have errors.
    """
    return [
        {
            "what": what,
            "value": value,
            "bound": bound,
            "limit": limit,
            "met": value >= limit if bound == "at least" else value <= limit,
        }
        for what, value, bound, limit in targets
        if value is not None
    ]


def _flat(groups):
    return [row for group in groups for row in group]


# Kinds of measurements.


def ceilings(bench, size, copied_bytes):
    values = bench.call("ours", "ceilings", size=size, copied_bytes=copied_bytes)
    bench.peak_flops = values["matmul_tflops"] * 1e12
    return {"values": values, "targets": []}


def correctness(bench, what, function, limit, **arguments):
    error = bench.call("ours", function, **arguments)
    targets = _targets((f"relative error, {what}", error, "at most", limit))
    return {"values": {what: error}, "targets": targets}


def training(bench, contestants, milliseconds=None):
    [[ours, compiled, *_]] = rows = bench.compare([contestants])
    times = compiled.get("relative_time")
    asked = [("times as fast as timm compiled", times, "at least", 1.0)]
    if milliseconds:
        taken = ours.get("milliseconds")
        asked.append(("milliseconds per step", taken, "at most", milliseconds))
    return {"rows": rows[0], "targets": _targets(*asked)}


def inference(bench, groups, share_of_resnet=None):
    groups = bench.compare(groups)
    asked = []
    if share_of_resnet:
        # At the largest batch, where the speed of the card is limited by arithmetic only.
        share = groups[-1][-1].get("relative_time")
        what = "images per second, as a share of compiled ResNet-50's"
        asked.append((what, share, "at least", share_of_resnet))
    return {"rows": _flat(groups), "targets": _targets(*asked)}


def batch_norm(bench, groups):
    return {"rows": _flat(bench.compare(groups)), "targets": []}


def parts(bench, groups, limit):
    groups = bench.compare(groups)
    # At the largest batch: in a smaller one, moving the weights takes a larger share.
    _, *without = groups[-1]
    asked = [
        (f"share of a step, {row['label']}", _share(row), "at most", limit)
        for row in without
    ]
    return {"rows": _flat(groups), "targets": _targets(*asked)}


def _share(row):
    """Return the share of a step that the part left out in `row` takes, or None."""
    return 1 - row["relative_time"] if row.get("relative_time") else None


_PEERS = {
    "NFNetF0": "dm_nfnet_f0",
    "NFNetF1": "dm_nfnet_f1",
    "NFNetF3": "dm_nfnet_f3",
    "ECANFNetL0": "eca_nfnet_l0",
    "NFResNet50": "nf_resnet50",
}


def measurements(smoke, has_timm):
    """List the measurements, most important first.

    Args:
        smoke: bool. Whether to use tiny networks and images, and only the first
            measurement of each kind (but all correctness checks).
        has_timm: bool. If False, this package is measured in place of timm.
    """
    contestant = functools.partial(_contestant, smoke, has_timm)

    def sizes_of_batches(*sizes):
        return sizes[:1] if smoke else sizes

    def trained(network, size, batch, estimate, **asked):
        case = {"kind": "train", "network": network, "size": size, "batch": batch}
        contestants = [
            contestant("ours", network, **case),
            contestant("timm", "timm, compiled", compiled=True, **case),
            contestant("timm", "timm, eager", compiled=False, **case),
        ]
        run = functools.partial(training, contestants=contestants, **asked)
        name = f"training step, {network}, {size} x {size}, batch {batch}"
        return Measurement(name, "training", estimate, run)

    def inferred(network, size, estimate, **asked):
        groups = []
        for batch in sizes_of_batches(1, 32, 256):
            case = {"kind": "infer", "network": network, "size": size, "batch": batch}
            yardstick = {**case, "network": "resnet50", "size": 224}
            groups.append(
                [
                    contestant("ours", f"{network}, folded", **case),
                    contestant("timm", "timm, compiled", **case),
                    contestant("timm", "timm's ResNet-50, compiled", **yardstick),
                ]
            )
        run = functools.partial(inference, groups=groups, **asked)
        name = f"inference, {network}, {size} x {size}"
        return Measurement(name, "inference", estimate, run)

    def checked(what, function, limit, estimate=15, **arguments):
        settings = {"what": what, "function": function, "limit": limit}
        run = functools.partial(correctness, **settings, **arguments)
        return Measurement(f"correctness, {what}", "correctness", estimate, run)

    def normalized(batches, estimate):
        case = {"kind": "train", "size": 224}
        networks = ("NFResNet50", "ResNet50V2")
        groups = [
            [contestant("ours", n, network=n, batch=b, **case) for n in networks]
            for b in sizes_of_batches(*batches)
        ]
        run = functools.partial(batch_norm, groups=groups)
        return Measurement("batch normalization", "batch_norm", estimate, run)

    def taken_apart(batches, estimate, limit):
        case = {"kind": "train", "network": "NFNetF0", "size": 192}
        groups = [
            [
                contestant("ours", "NFNetF0", batch=b, **case),
                contestant("ours", "without clipping", batch=b, clip=False, **case),
                contestant(
                    *("ours", "without standardization"),
                    **{"batch": b, "standardize": False, **case},
                ),
            ]
            for b in sizes_of_batches(*batches)
        ]
        run = functools.partial(parts, groups=groups, limit=limit)
        return Measurement("parts of a step", "parts", estimate, run)

    of_card = {"size": 8192, "copied_bytes": 2**32}
    if smoke:
        of_card = {"size": 256, "copied_bytes": 2**22}
    golden = "haiku_nfnet_tiny" if smoke else "haiku_nfnet_f0"
    entries = [
        Measurement(
            *("ceilings", "ceilings", 20), functools.partial(ceilings, **of_card)
        ),
        *(
            checked(f"{name} in float32", "golden_case", 2e-5, name=name)
            for name in ("haiku_nfnet_tiny_odd", golden)
        ),
        checked("clipped tensors", "clipped_tensors", 1e-6),
        checked("training step on a CPU", "step_on_cpu", 1e-4, 30),
        checked("folded in bfloat16", "folded_in_bfloat16", 1e-2),
        trained("NFNetF0", 192, 32, 90, milliseconds=5.0),
        inferred("NFNetF0", 192, 70, share_of_resnet=0.60),
        trained("ECANFNetL0", 224, 128, 80),
        inferred("ECANFNetL0", 224, 60, share_of_resnet=0.95),
        trained("NFNetF0", 192, 128, 90),
        trained("NFResNet50", 224, 128, 60),
        taken_apart((32, 128), 100, limit=0.03),
        normalized((8, 64, 256), 90),
        trained("NFNetF1", 224, 64, 130),
        inferred("NFNetF0", 256, 70),
        trained("NFNetF3", 320, 32, 240),
    ]
    return _once(entries) if smoke else entries


def _once(entries):
    """Keep the first measurement of each kind, and all correctness checks."""
    firsts = {}
    for entry in entries:
        key = entry.name if entry.kind == "correctness" else entry.kind
        firsts.setdefault(key, entry._replace(estimate=5))
    return list(firsts.values())


def _contestant(smoke, has_timm, worker, label, **case):
    name = case["network"]
    if worker == "timm" and has_timm:
        case["network"] = "test_nfnet" if smoke else _PEERS.get(name, name)
    elif smoke:
        normalized = name == "ResNet50V2"
        case["network"] = "batch-normalized" if normalized else "normalizer-free"
    if smoke:
        case |= {"size": 32, "batch": min(case["batch"], 2)}
        label = f"{label} (in fact {case['network']})"
    return Contestant(worker, label, case)
