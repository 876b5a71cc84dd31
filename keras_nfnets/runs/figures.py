"""Matplotlib figures of training runs, and sheets of images."""

import textwrap

import numpy as np

from keras_nfnets import plotting
from keras_nfnets.printing import printable


def training_curves(history, path, title):
    """Plot the loss, the accuracy and the share of clipped units over the epochs.

    `history` is that of `keras.callbacks.History`; `clip_share` is optional. So are the
    results of averaged weights (`val_ema_loss`, ...) and the shares of each stage
    (`clip_share_stage1`, ...).
    """
    with plotting.styled():
        plotting.save(_training_curves(history, title), path)


def _training_curves(history, title):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = {"loss": ("loss", 1), "accuracy": ("accuracy (%)", 100)}
    if "clip_share" in history:
        panels["clip_share"] = ("units clipped (%)", 100)
    epochs = np.arange(1, len(history["loss"]) + 1)
    figure = Figure(figsize=(6.8, 2.8 * len(panels)), layout="constrained")
    drawn = figure.subplots(len(panels), 1, sharex=True)
    for axes, (key, (label, scale)) in zip(drawn, panels.items(), strict=True):
        lines = {
            key: "all" if key == "clip_share" else "training",
            f"val_{key}": "validation",
            f"val_ema_{key}": "validation,\naveraged weights",
            **{n: n.split("_")[-1] for n in history if n.startswith(f"{key}_")},
        }
        for name in filter(history.__contains__, lines):
            values = scale * np.array(history[name])
            every = -(-len(epochs) // _MARKERS)
            axes.plot(epochs, values, markevery=every, label=lines[name])
        axes.set_title(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if key != "accuracy":
            axes.set_ylim(bottom=0)
        plotting.label_lines(axes)
    drawn[-1].set_xlabel("epoch")
    figure.suptitle(
        textwrap.fill(shortened(title, _LONGEST_TITLE), _TITLE_LINE), parse_math=False
    )
    return figure


def predictions(images, labels, probabilities, class_names, path, title):
    """Draw images with their predicted classes, mistakes first.

    Args:
        images: array `(n, height, width, 1 or 3)`, of any range.
        labels: integer array `(n,)`.
        probabilities: array `(n, classes)`.
        class_names: list of str.
        path: path of the file to write.
        title: str. Title of the figure.
    """
    rows, columns = 5, 8
    predicted = probabilities.argmax(axis=1)
    mistakes_first = np.argsort(predicted == labels, kind="stable")[: rows * columns]
    shown, captions, colors = [], [], []
    for i in mistakes_first:
        image = images[i] - images[i].min()
        image = image / max(image.max(), 1e-9)
        shown.append(image if image.shape[-1] == 3 else 1 - image)
        name = shortened(class_names[predicted[i]], 20)
        caption = f"{name}  {probabilities[i, predicted[i]]:.0%}"
        if predicted[i] != labels[i]:
            caption += f"\ntrue: {shortened(class_names[labels[i]], 20)}"
        captions.append(caption)
        colors.append("seagreen" if predicted[i] == labels[i] else "crimson")
    _draw(shown, captions, columns, path, title, side=1.2, colors=colors)


def labeled(shown, path):
    """Draw images with their most probable classes.

    Args:
        shown: list of tuples: an image (uint8), its name and its `ClassScore`s, most
            probable first.
        path: path of the file to write.
    """
    images = [image for image, _, _ in shown]
    captions = []
    for _, name, best in shown:
        lines = [f"{shortened(score.name, 40)}  {score.text}" for score in best]
        captions.append("\n".join([shortened(name, 40), *lines]))
    _draw(images, captions, min(4, len(shown)), path, side=3)


def sheet(images, captions, columns, path, title):
    """Draw images in rows, each under its caption.

    Args:
        images: uint8 array `(n, height, width, 1 or 3)`.
        captions: list of n str.
        columns: int. Number of images per row.
        path: path of the file to write.
        title: str. Title of the figure.
    """
    _draw(images, captions, columns, path, title, side=1.6)


def _draw(images, captions, columns, path, title="", *, side, colors=None):
    """Draw images into squares of `side` inches, in rows, each under its caption.

    All images share one pair of axes whose unit is the inch: separate axes and a layout
    for them take several times as long.
    """
    from matplotlib.figure import Figure

    gap, line = 0.12, 0.16
    above = gap + line * max(caption.count("\n") + 1 for caption in captions)
    top = 0.35 if title else 0
    rows = -(-len(images) // columns)
    width = columns * (side + gap) + gap
    height = top + rows * (above + side) + gap
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.set_autoscale_on(False)
    for i, (image, caption) in enumerate(zip(images, captions)):
        row, column = divmod(i, columns)
        x = gap + column * (side + gap) + side / 2
        y = top + row * (above + side) + above
        across, down = (side * n / max(image.shape[:2]) for n in image.shape[1::-1])
        axes.imshow(
            np.broadcast_to(image, (*image.shape[:2], 3)),
            extent=(x - across / 2, x + across / 2, y + down, y),
        )
        color = colors[i] if colors else "black"
        text = {"fontsize": 9, "parse_math": False, "linespacing": 1.1}
        axes.text(
            x,
            y - 0.05,
            printable(caption, keep="\n"),
            ha="center",
            va="bottom",
            color=color,
            **text,
        )
    title = shortened(title, _LONGEST_TITLE)
    figure.suptitle(title, y=1 - 0.08 / height, va="top", parse_math=False)
    plotting.save(figure, path)


def from_standardized(images, preparation):
    """Convert standardized images to uint8 for display; see `data.prepare`."""
    mean, deviation = preparation["mean"], preparation["deviation"]
    if mean is None:
        low = images.min(axis=(1, 2, 3), keepdims=True)
        high = images.max(axis=(1, 2, 3), keepdims=True)
        values = (images - low) / np.maximum(high - low, 1e-9)
    else:
        if images.shape[-1] == 1:
            mean, deviation = np.mean(mean), np.mean(deviation)
        values = images * np.float32(deviation) + np.float32(mean)
    return np.uint8((values * 255).round().clip(0, 255))


def shrink(image, longest):
    """Shrink an image (uint8) to at most `longest` pixels a side."""
    from PIL import Image

    image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image.thumbnail((longest, longest))
    return np.asarray(image)


# Markers on a line, and characters in a line of the title, of a figure of curves.
_MARKERS, _TITLE_LINE = 15, 60

# Characters of a title that fit above a figure.
_LONGEST_TITLE = 120


def shortened(name, longest):
    """Return a name without control characters and, if it is long, without its middle."""
    name = printable(name)
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}...{name[3 - half :]}"
