"""Result files of gpu.py, and Markdown tables made from them."""

import json
import os
import pathlib

FOLDER = pathlib.Path(__file__).parent / "results"

_HEADINGS = {
    "ceilings": "What the card can do",
    "correctness": "Correctness",
    "training": "Training steps (bfloat16, AGC, Nesterov momentum)",
    "inference": "Inference (bfloat16, folded)",
    "batch_norm": "Normalizer-free and batch-normalized training steps",
    "parts": "Clipping and weight standardization in a training step",
}


def load(path):
    return json.loads(pathlib.Path(path).read_text("utf-8"))


def save(document, path):
    """Write a complete file, or leave the earlier one unchanged."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    os.replace(partial, path)


def newest_of_each_card(folder=FOLDER):
    """Load the newest results of each card in `folder`, sorted by the card's name."""
    documents = [load(path) for path in sorted(folder.glob("*.json"))]
    documents.sort(key=lambda document: document["date"])
    newest = {document["device"]: document for document in documents}
    return [newest[device] for device in sorted(newest)]


def markdown(document):
    """Return lines of Markdown: one table for each kind of measurement."""
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    lines = [f"**{document['device']}**, {document['date']}: {versions}.", ""]
    measured = document["measurements"].values()
    for kind, heading in _HEADINGS.items():
        of_kind = [m for m in measured if m["kind"] == kind and "error" not in m]
        if of_kind:
            lines += [f"*{heading}*", "", *table(kind, of_kind), ""]
    return lines


def table(kind, measurements):
    """Return the lines of a Markdown table of measurements of one kind."""
    if kind in ("ceilings", "correctness"):
        values = [pair for m in measurements for pair in m["values"].items()]
        lines = ["| | |", "| --- | ---: |"]
        return lines + [f"| {name} | {value:.3g} |" for name, value in values]
    last = "share of the step" if kind == "parts" else "ours is faster by"
    head = "size | batch | ms | images per second | share of peak | peak memory, GB"
    lines = [f"| | {head} | {last} |", f"| --- |{' ---: |' * 7}"]
    return lines + [_row(kind, row) for m in measurements for row in m["rows"]]


def _row(kind, row):
    start = f"| {row['label']} | {row['size']} | {row['batch']} "
    if "error" in row:
        return f"{start}| failed | | | | |"
    compared, share, memory = "", "", ""
    if row["relative_time"] is not None:
        compared = f"{row['relative_time']:.2f}×"
        if kind == "parts":
            compared = f"{1 - row['relative_time']:.1%}"
    if row["share_of_peak"] is not None:
        share = f"{row['share_of_peak']:.0%}"
    if row["peak_mib"] is not None:
        memory = f"{row['peak_mib'] / 1024:.2f}"
    return (
        f"{start}| {row['milliseconds']:.3g} | {row['images_per_second']:,.0f} "
        f"| {share} | {memory} | {compared} |"
    )
