"""Report of a training run: one self-contained HTML file."""

import base64
import html
import io
import shlex

import numpy as np

from keras_nfnets.printing import printable
from keras_nfnets.runs import evaluation, figures
from keras_nfnets.runs.progress import is_unbalanced

# A larger confusion matrix is hard to read; then the most frequent confusions are listed.
_LARGEST_MATRIX = 25
_MISTAKES, _PAIRS = 24, 15


def page(run, results):
    """Return the report as HTML text.

    Args:
        run: `Run` of which at least one epoch is completed.
        results: `Results` of its model on its validation split.
    """
    wrong = results.predicted != results.labels
    best = run.best_epoch
    epoch = run.epochs if best is None else best + 1
    facts = (
        f"{results.accuracy:.1%} of {len(results.labels):,} validation images are "
        f"classified correctly, {int(wrong.sum()):,} are not. The run completed {run.epochs} "
        f"epochs. The model is that of epoch {epoch}"
        + ("." if best is None else ", which has the highest validation accuracy.")
    )
    sections = [
        f"<h1>{_text(run.title)}</h1><p class=lead>{_text(facts)}</p>",
        "<h2>Training</h2>" + _curves(run),
        "<h2>Accuracy per class</h2>" + _classes(run, results),
        "<h2>Confusion matrix</h2>" + _confusion(run.source.class_names, results),
        "<h2>Worst mistakes</h2>" + _worst_mistakes(run, results),
        _left_out(run.source),
        "<h2>How to use the model</h2>" + _usage(run.folder),
        "<h2>Settings</h2>" + _settings(run.recipe),
    ]
    body = "\n".join(f"<section>{s}</section>" for s in sections if s)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(run.title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _curves(run):
    file = io.BytesIO()
    figures.training_curves(run.history, file, run.title)
    return _image(file.getvalue(), "loss, accuracy and clipping")


def _left_out(source):
    if not source.left_out:
        return ""
    rows = "".join(
        f"<li>{_text(name)}: {_text(why)}</li>" for name, why in source.left_out.items()
    )
    return (
        f"<h2>Images left out</h2><p>{len(source.left_out)} images could not be read:</p>"
        f"<ul>{rows}</ul>"
    )


def _text(value, keep=""):
    return html.escape(printable(value, keep))


def _image(content, alternative, kind="png", options=""):
    data = base64.b64encode(content).decode()
    return (
        f'<img {options} alt="{_text(alternative)}" '
        f'src="data:image/{kind};base64,{data}">'
    )


def _classes(run, results):
    names = run.source.class_names
    accuracy, counts = results.accuracy_by_class()
    trained_on = run.source.counts(run.recipe.train_split)
    worst_first = np.argsort(np.nan_to_num(accuracy, nan=2.0), kind="stable")
    rows = "".join(
        f"<tr><td>{_text(names[i])}<td class=n>{trained_on[i]:,}"
        f"<td class=n>{counts[i]:,}"
        + (
            f"<td class=n>{accuracy[i]:.0%}<td><div class=bar>"
            f'<div style="width:{accuracy[i]:.1%}"></div></div>'
            if counts[i]
            else "<td class=n>no images<td>"
        )
        for i in worst_first
    )
    unbalanced = ""
    if is_unbalanced(trained_on):
        unbalanced = (
            "<p>The classes have very different numbers of images. Accuracy is often "
            "lower for classes with few images.</p>"
        )
    return (
        f"{unbalanced}<table><tr><th>class<th>training images<th>validation images"
        f"<th>accuracy<th>{rows}</table>"
    )


def _confusion(names, results):
    matrix = results.confusion()
    if len(names) > _LARGEST_MATRIX:
        return _pairs(names, matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    header = "".join(
        f'<th class=up title="{_text(name)}"><span>{_text(name)}</span>'
        for name in names
    )
    rows = ""
    for i, name in enumerate(names):
        cells = "".join(
            f'<td class="c {"right" if i == j else "wrong"}" '
            f'style="--share:{100 * shares[i, j]:.0f}%" '
            f'title="{matrix[i, j]} of {_text(name)} predicted as {_text(names[j])}">'
            f"{matrix[i, j] or ''}"
            for j in range(len(names))
        )
        rows += f'<tr><th class=side title="{_text(name)}">{_text(name)}{cells}'
    return (
        "<p>Rows: true class; columns: predicted class.</p>"
        f"<div class=wide><table class=matrix><tr><th>{header}{rows}</table></div>"
    )


def _pairs(names, matrix):
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    rows = "".join(
        f"<tr><td>{_text(names[i])}<td>{_text(names[j])}<td class=n>{wrong[i, j]}"
        for i, j in (np.unravel_index(k, wrong.shape) for k in order)
        if wrong[i, j]
    )
    if not rows:
        return "<p>All images are classified correctly.</p>"
    return f"<table><tr><th>true class<th>predicted class<th>images{rows}</table>"


def _worst_mistakes(run, results):
    of_label = results.probabilities[np.arange(len(results.labels)), results.labels]
    order = np.argsort(of_label, kind="stable")
    wrong = results.predicted != results.labels
    order = [i for i in order if wrong[i]][:_MISTAKES]
    if not order:
        return "<p>All images are classified correctly.</p>"
    indices, names = results.indices, run.source.class_names
    # (All images at once may not fit into the memory.)
    found = {
        index: (name, figures.shrink(image, 200))
        for index, name, image in evaluation.images_at(
            run.source, run.recipe.test_split, indices[order]
        )
    }
    shown = ""
    for i in order:
        name, image = found[indices[i]]
        predicted = results.predicted[i]
        shown += (
            f"<figure>{_thumbnail(image, name)}<figcaption>"
            f"predicted: <b>{_text(names[predicted])}</b> "
            f"({results.probabilities[i, predicted]:.0%})<br>"
            f"true: {_text(names[results.labels[i]])} "
            f"({of_label[i]:.0%})<br>"
            f"<small>{_text(name.rpartition('/')[2])}</small></figcaption></figure>"
        )
    return (
        "<p>Misclassified validation images, lowest predicted probability of the true class "
        f"first. Some may be in the wrong folder.</p><div class=sheet>{shown}</div>"
    )


def _thumbnail(image, name):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    options = f'title="{_text(name)}"'
    return _image(file.getvalue(), name.rpartition("/")[2], options=options)


def _usage(path):
    quoted = shlex.quote(str(path))
    commands = (
        f"keras-nfnets predict {quoted} image.jpg\n"
        f"keras-nfnets evaluate {quoted}\n"
        f"keras-nfnets export {quoted} model.tflite"
    )
    code = (
        "from keras_nfnets import runs\n\n"
        f"classifier = runs.load_classifier({str(path)!r})\n"
        '[classes] = classifier.predict_classes(["image.jpg"])\n'
        "print(classes[0].name, classes[0].probability)"
    )
    commands, code = (_text(text, keep="\n") for text in (commands, code))
    return (
        "<p>On the command line, in the folder where training was started:</p>"
        f"<pre>{commands}</pre><p>In Python:</p><pre>{code}</pre>"
    )


def _settings(recipe):
    settings = "".join(
        f"<tr><td>{_text(name)}<td>{_text(value)}"
        for name, value in vars(recipe).items()
        if value is not None and name != "about"
    )
    return (
        f"<details><summary>All settings</summary><table>{settings}</table></details>"
    )


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #f3f4f6;
  --line: #d9dce1; --right: #1a7f4b; --wrong: #c2353f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --paper: #16181c;
  --soft: #23262c; --line: #3a3e46; --right: #46c281; --wrong: #f2727b; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.lead { font-size: 1.1rem; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
table { border-collapse: collapse; max-width: 100%; }
th { text-align: left; font-weight: 600; }
td, th { padding: .15rem .7rem .15rem 0; vertical-align: middle; }
td, p, li { overflow-wrap: anywhere; }
.n { overflow-wrap: normal; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { width: min(12rem, 20vw); height: .6rem; background: var(--soft); border-radius: 3px; }
.bar div { height: 100%; background: var(--right); border-radius: 3px; }
.wide { overflow-x: auto; }
.matrix td { width: 2.1rem; min-width: 2.1rem; height: 2.1rem; padding: 0;
  text-align: center; border: 1px solid var(--line); font-size: .85rem; }
.matrix .right { background: color-mix(in srgb, var(--right) var(--share), transparent); }
.matrix .wrong { background: color-mix(in srgb, var(--wrong) var(--share), transparent); }
.matrix .side { text-align: right; font-weight: 400; max-width: 14rem; }
.matrix .side, .up span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.matrix .up { vertical-align: bottom; padding: 0 0 .3rem; font-weight: 400; }
.up span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 14rem; }
.sheet { display: grid; gap: 1rem; align-items: end;
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; max-height: 9rem; object-fit: contain; }
figcaption { font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; }
figcaption b { color: var(--wrong); }
small { opacity: .7; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px;
  overflow-x: auto; font-size: .85rem; }
"""
