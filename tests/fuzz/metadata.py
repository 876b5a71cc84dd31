"""Hostile metadata of models: pages that say more than a model can do."""

import copy
import json
import math

SOUND = {
    "preparation": {
        "size": 16,
        "channels": 1,
        "crop_mode": "center",
        "crop": 0.9,
        "interpolation": "bicubic",
        "mean": [0.5],
        "deviation": [0.25],
    },
    "class_names": [str(i) for i in range(10)],
    "data": "digits",
    "images": "0" * 64,
    "split": "test",
    "label_smoothing": 0.1,
}

# Values that no entry has.
WRONG = (
    *(
        True,
        {},
        {"a": 1},
        [],
        [[]],
        [None],
        "",
        "x",
        "\x1b[31m",
        "1",
        "nan",
        "9" * 5000,
    ),
    *(0, -1, 1.5, 2**31, 10**30, -(10**30), 1e308, 1e-308),
    *(math.nan, math.inf, -math.inf, [math.nan] * 3, [1e308] * 3, [1, 2]),
    [0.5] * 100_000,
)

# Of each entry, values that look like its own.
_OWN = {
    "size": (0, -224, 4097, 10**6, 2**40, 16.0, "16", None, math.nan, math.inf),
    "channels": (0, 2, 4, 10**6, 1.5, "3"),
    "crop_mode": ("resize_crop_9999", "resize_crop_-1", "../x", "center ", 3),
    "crop": (0, -1, 1.1, 9999, 1e-9, 1e-300, math.nan, math.inf, "0.9"),
    "interpolation": ("lanczos", "__class__", "antialiased_nearest", 3),
    "mean": ([], [0.5, 0.5], [math.nan], [1e300], "0.5", [None], [[0.5]], None),
    "deviation": ([0], [0.0], [-1], [1e-300], [math.nan], [math.inf], [], None),
    "class_names": (
        None,
        "0123456789",
        [0] * 10,
        [["a"]] * 10,
        {},
        ["a"] * 9,
        ["a" * 10**6] * 10,
    ),
    "data": (7, ["digits"], {}, "x" * 10**6),
    "images": (7, [], "x" * 10**6),
    "split": (7, [], "x" * 10**6),
    "label_smoothing": (-1, 1, 2, math.nan, math.inf, "0.1", [0.1]),
}


def wrong():
    """Yield `(name, metadata)` of metadata that must be refused."""
    for name, values in _OWN.items():
        inside = name in SOUND["preparation"]
        for value in values:
            changed = copy.deepcopy(SOUND)
            (changed["preparation"] if inside else changed)[name] = value
            yield f"{name}={str(value)[:20]}", changed
    for name in ("preparation", "class_names"):
        yield f"no {name}", {k: v for k, v in SOUND.items() if k != name}
    for value in (None, 7, "x", [], [SOUND]):
        yield f"{str(value)[:20]}", value
    yield "unknown key", {**SOUND, "preparation": {**SOUND["preparation"], "x": 1}}


def texts():
    """Yield `(name, text)` of JSON files that must be refused."""
    text = json.dumps(SOUND)
    yield "nested lists", "[" * 100_000
    yield "nested objects", '{"a":' * 100_000
    yield "nested and closed", text[:-1] + ', "x": ' + "[" * 99_999 + "]" * 99_999 + "}"
    yield "broken off", text[: len(text) // 2]
    yield "empty", ""
    yield "no text", "\ud800"


def changed(rng):
    """Return metadata with random changes; `rng` is a `random.Random`."""
    result = copy.deepcopy(SOUND)
    for _ in range(rng.randrange(1, 4)):
        at = rng.choice([result, result.get("preparation")])
        if not isinstance(at, dict):
            continue
        name = rng.choice([*at, "x"]) if at else "x"
        kind = rng.randrange(3)
        if kind == 0:
            at.pop(name, None)
        elif kind == 1:
            at[name] = rng.choice((*WRONG, *_OWN.get(name, ())))
        else:
            at[name] = rng.choice([rng.gauss(0, 10), rng.randrange(-9, 9999), None])
    return result
