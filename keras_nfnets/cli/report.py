"""Report of a training run: one self-contained HTML file."""

import base64
import html
import io
import shlex

import numpy as np

from keras_nfnets.cli import held_out, pictures, run_folder

# A larger confusion matrix is hard to read; then the most frequent confusions are listed.
_LARGEST_MATRIX = 25
_MOST_WRONG, _PAIRS = 24, 15


def page(title, recipe, source, history, results, curves, model):
    """Return the report as HTML text.

    Args:
        title: str. Title of the run.
        recipe: `recipes.Recipe` of the run.
        source: `data.Source` of the run.
        history: dict `{name: [value, ...]}`, one value per epoch.
        results: `Results` on the test images.
        curves: `pathlib.Path` of the figure of training curves.
        model: `pathlib.Path` where the model will be.
    """
    wrong = results.said != results.labels
    epochs = len(history["loss"])
    best = run_folder.best_epoch(history) if recipe.patience else epochs - 1
    facts = (
        f"{results.accuracy:.1%} of {len(results.labels):,} held-out pictures are told "
        f"right, {int(wrong.sum()):,} are not. "
        f"{epochs} epochs; the network is that of epoch {best + 1}"
        + (", the best." if recipe.patience else ".")
    )
    left_out = ""
    if source.left_out:
        rows = "".join(
            f"<li>{_text(name)}: {_text(why)}</li>"
            for name, why in source.left_out.items()
        )
        left_out = (
            f"<h2>Left out</h2><p>{len(source.left_out)} pictures could not be read:</p>"
            f"<ul>{rows}</ul>"
        )
    sections = [
        f"<h1>{_text(title)}</h1><p class=lead>{_text(facts)}</p>",
        "<h2>Training</h2>"
        + _image(curves.read_bytes(), "loss, accuracy and clipping"),
        "<h2>Classes</h2>" + _classes(recipe, source, results),
        "<h2>What is taken for what</h2>" + _confusion(source.class_names, results),
        "<h2>The most wrong</h2>" + _most_wrong(recipe, source, results),
        left_out,
        "<h2>How to use it</h2>" + _usage(model),
        "<h2>How it was made</h2>" + _recipe(recipe),
    ]
    body = "\n".join(f"<section>{s}</section>" for s in sections if s)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _text(value):
    # File names may contain bytes that are not valid text.
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def _image(content, alternative, kind="png", options=""):
    data = base64.b64encode(content).decode()
    return (
        f'<img {options} alt="{_text(alternative)}" '
        f'src="data:image/{kind};base64,{data}">'
    )


def _classes(recipe, source, results):
    accuracy, counts = results.accuracy_by_class()
    trained_on = source.counts(recipe.train_split)
    worst_first = np.argsort(np.nan_to_num(accuracy, nan=2.0), kind="stable")
    rows = "".join(
        f"<tr><td>{_text(source.class_names[i])}<td class=n>{trained_on[i]:,}"
        f"<td class=n>{counts[i]:,}"
        + (
            f"<td class=n>{accuracy[i]:.0%}<td><div class=bar>"
            f'<div style="width:{accuracy[i]:.1%}"></div></div>'
            if counts[i]
            else "<td class=n>none held out<td>"
        )
        for i in worst_first
    )
    unbalanced = ""
    if max(trained_on) > 3 * max(min(trained_on), 1):
        unbalanced = (
            "<p>The classes have very different numbers of pictures: those with few are "
            "told less well than the accuracy of all says.</p>"
        )
    return (
        f"{unbalanced}<table><tr><th>class<th>trained on<th>held out<th>accuracy<th>"
        f"{rows}</table>"
    )


def _confusion(names, results):
    matrix = results.confusion()
    if len(names) > _LARGEST_MATRIX:
        return _pairs(names, matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    header = "".join(f"<th class=up><span>{_text(name)}</span>" for name in names)
    rows = ""
    for i, name in enumerate(names):
        cells = "".join(
            f'<td class="c {"right" if i == j else "wrong"}" '
            f'style="--share:{100 * shares[i, j]:.0f}%" '
            f'title="{matrix[i, j]} of {_text(name)} said to be {_text(names[j])}">'
            f"{matrix[i, j] or ''}"
            for j in range(len(names))
        )
        rows += f"<tr><th class=side>{_text(name)}{cells}"
    return (
        "<p>A row for what pictures are, a column for what the network says.</p>"
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
        return "<p>No picture is taken for another class.</p>"
    return f"<table><tr><th>is<th>said to be<th>pictures{rows}</table>"


def _most_wrong(recipe, source, results):
    of_label = results.probabilities[np.arange(len(results.labels)), results.labels]
    order = np.argsort(of_label, kind="stable")
    order = [i for i in order if results.said[i] != results.labels[i]][:_MOST_WRONG]
    if not order:
        return "<p>None is wrong.</p>"
    found = held_out.pictures_at(source, recipe.test_split, results.places[order])
    figures = ""
    for i in order:
        name, picture = found[results.places[i]]
        said = results.said[i]
        figures += (
            f"<figure>{_thumbnail(picture, name)}<figcaption>"
            f"said: <b>{_text(source.class_names[said])}</b> "
            f"({results.probabilities[i, said]:.0%})<br>"
            f"is: {_text(source.class_names[results.labels[i]])} "
            f"({of_label[i]:.0%})<br>"
            f"<small>{_text(name.rpartition('/')[2])}</small></figcaption></figure>"
        )
    return (
        "<p>Held-out pictures of whose class the network thought least. Some may be in "
        f"the wrong folder.</p><div class=sheet>{figures}</div>"
    )


def _thumbnail(picture, name):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pictures.small(picture, 200)).save(file, "PNG", optimize=True)
    options = f'title="{_text(name)}"'
    return _image(file.getvalue(), name.rpartition("/")[2], options=options)


def _usage(model):
    path = shlex.quote(str(model))
    commands = (
        f"keras-nfnets predict {path} picture.jpg\n"
        f"keras-nfnets evaluate {path}\n"
        f"keras-nfnets export {path} model.tflite"
    )
    code = (
        "import json\nimport keras\nimport keras_nfnets  # its layers\n"
        "from keras_nfnets import data\n\n"
        f"model = keras.saving.load_model({str(model)!r})\n"
        f"about = json.load(open({str(model.with_suffix('.json'))!r}))\n"
        'picture = data.read_picture("picture.jpg")\n'
        'x = data.prepare(picture, **about["preparation"])\n'
        "probabilities = model.predict(x[None])[0]\n"
        'print(about["class_names"][probabilities.argmax()], probabilities.max())'
    )
    return (
        "<p>On the command line, in the folder where it was trained:</p>"
        f"<pre>{_text(commands)}</pre><p>In Python:</p><pre>{_text(code)}</pre>"
    )


def _recipe(recipe):
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
table { border-collapse: collapse; }
th { text-align: left; font-weight: 600; }
td, th { padding: .15rem .7rem .15rem 0; vertical-align: middle; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { width: min(12rem, 20vw); height: .6rem; background: var(--soft); border-radius: 3px; }
.bar div { height: 100%; background: var(--right); border-radius: 3px; }
.wide { overflow-x: auto; }
.matrix td { width: 2.1rem; min-width: 2.1rem; height: 2.1rem; padding: 0;
  text-align: center; border: 1px solid var(--line); font-size: .85rem; }
.matrix .right { background: color-mix(in srgb, var(--right) var(--share), transparent); }
.matrix .wrong { background: color-mix(in srgb, var(--wrong) var(--share), transparent); }
.matrix .side { text-align: right; font-weight: 400; }
.matrix .up { vertical-align: bottom; padding: 0 0 .3rem; font-weight: 400; }
.up span { writing-mode: vertical-rl; transform: rotate(180deg); }
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
