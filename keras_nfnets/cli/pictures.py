"""Pictures of pictures, and of a training run."""

import numpy as np


def training_curves(history, path, title):
    """Draws loss, accuracy and the share of units clipped, epoch by epoch.

    `history` is that of `keras.callbacks.History`; `clip_share` may be missing. Drawn
    are also the averaged weights' results (`val_ema_loss`, ...) and the shares of the
    parts of the network (`clip_share_stage1`, ...), where there are such.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = np.arange(1, len(history["loss"]) + 1)
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, 3 if "clip_share" in history else 2)
    for axis, key, label, percent in zip(
        axes,
        ("loss", "accuracy", "clip_share"),
        ("loss", "accuracy (%)", "units clipped (%)"),
        (1, 100, 100),
    ):
        lines = {
            key: "all" if key == "clip_share" else "training",
            f"val_{key}": "held out",
            f"val_ema_{key}": "held out, averaged weights",
        }
        for name, line in lines.items():
            if name in history:
                values = percent * np.array(history[name])
                axis.plot(epochs, values, marker="o", markersize=3, label=line)
        for name in history:
            if name.startswith(f"{key}_"):
                values, part = percent * np.array(history[name]), name.split("_")[-1]
                axis.plot(epochs, values, linewidth=1, alpha=0.7, label=part)
        axis.set(xlabel="epoch", title=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend()
        if key != "accuracy":
            axis.set_ylim(bottom=0)
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120)


def predictions(images, labels, probabilities, class_names, path, title):
    """Draws held-out pictures with what the network said, its mistakes first.

    Args:
        images: `(n, height, width, 1 or 3)`, of any range.
        labels: `(n,)` integers.
        probabilities: `(n, classes)`.
        class_names: what the classes are called.
        path, title: of the picture.
    """
    from matplotlib.figure import Figure

    rows, columns = 5, 8
    said = probabilities.argmax(axis=1)
    mistakes_first = np.argsort(said == labels, kind="stable")[: rows * columns]
    figure = Figure(figsize=(columns * 1.3, rows * 1.6), layout="constrained")
    for axis in figure.subplots(rows, columns).flat:
        axis.axis("off")
    for axis, i in zip(figure.axes, mistakes_first):
        image = images[i] - images[i].min()
        image = image / max(image.max(), 1e-9)
        if image.shape[-1] == 1:
            axis.imshow(image[..., 0], cmap="gray_r")
        else:
            axis.imshow(image)
        text = f"{class_names[said[i]]}  {probabilities[i, said[i]]:.0%}"
        wrong = said[i] != labels[i]
        if wrong:
            text += f"\nis {class_names[labels[i]]}"
        color = "crimson" if wrong else "seagreen"
        axis.set_title(text, fontsize=9, color=color, parse_math=False)
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120)


def labelled(shown, path):
    """Draws pictures with what a network says of them.

    Args:
        shown: list of a picture (uint8), its name and its predictions, best first,
            each a dict with `"name"` and `"probability"`.
        path: of the picture to write.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.axis("off")
    for axis, (picture, name, best) in zip(grid.flat, shown):
        axis.imshow(picture)
        labels = [f"{row['name']}  {row['probability']:.0%}" for row in best]
        axis.set_title("\n".join([_short(name), *labels]), fontsize=9, parse_math=False)
    figure.savefig(path, dpi=100)


def sheet(images, captions, columns, path, title):
    """Draws pictures in rows, each under its caption.

    Args:
        images: uint8 `(n, height, width, 1 or 3)`.
        captions: n texts.
        columns: of the sheet.
        path, title: of the picture.
    """
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.axis("off")
    for axis, image, caption in zip(grid.flat, images, captions):
        grey = image.shape[-1] == 1
        axis.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(caption, fontsize=8, parse_math=False)
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=110)


def from_standardized(images, preparation):
    """What was standardized, as uint8 to look at; see `data.prepare`."""
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


def small(picture, longest):
    """A picture (uint8) of at most so many pixels a side."""
    from PIL import Image

    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    image.thumbnail((longest, longest))
    return np.asarray(image)


def _short(name):
    return name if len(name) <= 40 else f"{name[:20]}...{name[-17:]}"
