"""Tables of the documentation that are generated from the package.

As a program, `python docs/tables.py` writes the tables that are committed in pages.
"""

import csv
import dataclasses
import functools
import inspect
import pathlib
import re
import sys

import keras_nfnets
from keras_nfnets import pretrained, recipes
from keras_nfnets.models.costs import costs, count_flops, variants

_DOCS = pathlib.Path(__file__).parent
sys.path.append(str(_DOCS.parent / "benchmarks"))

import gpu_results

_LATENCY = _DOCS / "latency.csv"
# Pages with committed tables, each between two comments.
PAGES = (
    _DOCS / "zoo.md",
    _DOCS / "recipes.md",
    _DOCS / "guides" / "which_network.md",
    _DOCS.parent / "weights" / "README.md",
)
_COMMITTED = re.compile(
    r"(<!-- Table (\S+), written by docs/tables\.py -->\n).*?(<!-- End of table -->)",
    re.DOTALL,
)


def with_tables(text):
    """Return the text of a page with its committed tables as the package has them.

    Raises:
        ValueError: a table is unknown, or the page has no table.
    """
    names = [name for _, name, _ in _COMMITTED.findall(text)]
    if not names or not TABLES.keys() >= set(names):
        raise ValueError(f"Tables must be among {sorted(TABLES)}. Received: {names}")
    return _COMMITTED.sub(_with_rows, text)


def _with_rows(match):
    start, name, end = match.groups()
    return "\n".join([start, *TABLES[name](), "", end])


def pretrained_networks():
    """Return a table of the networks that have published weights, family by family."""
    rows = [
        [f"`{network}`", _accuracy(checkpoint), *_costs_and_sizes(network)]
        for network, checkpoint in _best_checkpoints().items()
    ]
    # Checkpoints of networks that are built by a constructor with another convention.
    listed = {c for name in variants() for c in _published(name)}
    for checkpoint in pretrained.list_checkpoints():
        if checkpoint not in listed:
            rows.append(_row_of_timm(checkpoint))
    head = ["network", "top-1, %", *_COSTS_AND_SIZES]
    return _markdown(head, rows, "lrrrrr")


def other_networks():
    """Return a table of the networks without published weights, family by family."""
    rows = [
        [f"`{network}`", *_costs_and_sizes(network)]
        for network in variants()
        if network not in _best_checkpoints()
    ]
    return _markdown(["network", *_COSTS_AND_SIZES], rows, "lrrrr")


def accuracy_and_time():
    """Return a table of the networks with ImageNet weights and a measured time."""
    milliseconds = _milliseconds()
    rows = [
        [
            f"`{network}`",
            _accuracy(checkpoint),
            milliseconds[network],
            _formatted(*costs()[network])[0],
        ]
        for network, checkpoint in _best_checkpoints().items()
        if network in milliseconds and checkpoint.class_names is None
    ]
    rows.sort(key=lambda row: float(row[2]))
    return _markdown(["network", "top-1, %", "CPU, ms", "parameters, M"], rows, "lrrr")


def _milliseconds():
    return {row["network"]: row["milliseconds"] for row in latencies()}


_COSTS_AND_SIZES = ("parameters, M", "FLOPs, G", "train / test size", "CPU, ms")


@functools.cache
def _best_checkpoints():
    """Return `{network: checkpoint}` of the networks with published weights."""
    found = {name: _published(name) for name in variants()}
    return {name: checkpoints[0] for name, checkpoints in found.items() if checkpoints}


def _published(name):
    return pretrained.published(getattr(keras_nfnets, name).architecture())


def _accuracy(checkpoint):
    on_imagenet = checkpoint.class_names is None
    return f"{checkpoint.top1:.2f}" + ("" if on_imagenet else " (digits)")


def _costs_and_sizes(name):
    variant = variants()[name]
    return [
        *_formatted(*costs()[name]),
        f"{variant.train_size} / {variant.test_size}",
        _milliseconds().get(name, ""),
    ]


def _row_of_timm(checkpoint):
    network = pretrained.find_network(checkpoint.network)
    size = checkpoint.size
    with pretrained.without_memory():
        model = network.build(input_shape=(size, size, 3))
        cost = model.count_params(), count_flops(model)
    return [
        f"`{network.constructor.__name__}`, timm's",
        _accuracy(checkpoint),
        *_formatted(*cost),
        f"{checkpoint.train_size} / {size}",
        "",
    ]


def _formatted(parameters, flops):
    return [
        f"{parameters / 1e6:.2f}" if parameters < 1e7 else f"{parameters / 1e6:.1f}",
        f"{flops / 1e9:.2f}" if flops < 1e9 else f"{flops / 1e9:.1f}",
    ]


def latencies():
    """Read the rows of latency.csv."""
    with open(_LATENCY, newline="") as file:
        return list(csv.DictReader(file))


def measured_on():
    """Return sentences that name the machines and versions of latency.csv."""
    places = {(row["machine"], row["versions"]) for row in latencies()}
    return [
        f"Measured on {machine}, {versions}." for machine, versions in sorted(places)
    ]


def gpu():
    """Return tables of the newest results of benchmarks/gpu.py for each card."""
    documents = gpu_results.newest_of_each_card()
    if not documents:
        return ["Not measured."]
    return [line for document in documents for line in gpu_results.markdown(document)]


def recipe_table():
    """Return a table of all recipes with their main settings."""
    rows = []
    for name, recipe in recipes.RECIPES.items():
        train, test = recipes.image_sizes(recipe)
        rows.append(
            [
                f"`{name}`",
                f"{recipe.batch_size:,}",
                _number(recipe.clip_factor),
                _number(recipe.learning_rate),
                _number(recipe.weight_decay),
                f"{train} / {test}",
                str(recipe.epochs),
            ]
        )
    head = ["recipe", "batch", "clip factor", "learning rate", "weight decay"]
    return _markdown([*head, "train / test size", "epochs"], rows, "lrrrrrr")


def recipe_images():
    """Return a table of preprocessing, precision and augmentation of all recipes.

    Recipes that agree in these share a row.
    """
    names = {}
    for name, recipe in recipes.RECIPES.items():
        settings = (
            recipe.crop_mode or "default",
            recipe.precision,
            recipe.augmentation or "default",
        )
        names.setdefault(settings, []).append(f"`{name}`")
    rows = [[", ".join(same), *settings] for settings, same in names.items()]
    head = ["recipe", "evaluation", "precision", "augmentation"]
    return _markdown(head, rows, "llll")


def recipe_settings():
    """Return a table of the settings of a recipe, from the docstring of `Recipe`."""
    defaults = {
        field.name: ""
        if field.default is dataclasses.MISSING
        else f"`{field.default!r}`"
        for field in dataclasses.fields(recipes.Recipe)
    }
    text = inspect.getdoc(recipes.Recipe).partition("Attributes:")[2]
    attributes = text.partition("Raises:")[0]
    entries = re.findall(
        r"^    (\w[\w, ]*): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE
    )
    rows = [
        [
            ", ".join(f"`{name}`" for name in names.split(", ")),
            ", ".join(filter(None, (defaults.pop(name) for name in names.split(", ")))),
            " ".join(meaning.split()),
        ]
        for names, meaning in entries
    ]
    if defaults:
        raise ValueError(f"The docstring of Recipe does not explain {list(defaults)}")
    return _markdown(["setting", "default", "meaning"], rows, "lll")


def checkpoints():
    """Return a table of all published checkpoints."""
    rows = [
        [
            f"`{c.name}`",
            f"`{c.network}`",
            f"{c.train_size} / {c.size}",
            f"{c.crop:g} {c.crop_mode}",
            f"{c.top1:.2f}",
            f"[timm](https://huggingface.co/{c.repo})" if c.repo else "bundled",
            f"`{c.release_sha256}`" if c.release_sha256 else "",
        ]
        for c in pretrained.list_checkpoints()
    ]
    head = ["name", "network", "train / test size", "crop", "top-1, %"]
    return _markdown([*head, "source", "release"], rows, "llrlrll")


def names_of(family):
    """Return the names of the networks of a family, a list of str."""
    module = getattr(keras_nfnets, family).__module__
    return [n for n in variants() if getattr(keras_nfnets, n).__module__ == module]


def constructors(family):
    """Return a table of the constructors of a family, with the arguments they fix."""
    members = {name: variants()[name] for name in names_of(family)}
    # In some families the widths follow from the depths or from a factor.
    fixed = [
        key
        for key in ("depths", "widths")
        if all(hasattr(variant, key) for variant in members.values())
    ]
    rows = [
        [
            f"{{py:obj}}`~keras_nfnets.{name}`",
            *(_numbers(getattr(variant, key)) for key in fixed),
            f"{variant.train_size} / {variant.test_size}",
        ]
        for name, variant in members.items()
    ]
    head = ["constructor", *fixed, "train / test size"]
    return _markdown(head, rows, "l" * (len(head) - 1) + "r")


def _numbers(values):
    return "" if values is None else ", ".join(map(str, values))


def _number(value):
    if value is None:
        return "none"
    return f"{value:g}" if value > 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _markdown(head, rows, alignment):
    rules = {"l": "---", "r": "---:"}
    lines = [head, [rules[letter] for letter in alignment], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


FAMILIES = {pretrained.find_network(name).architecture.builder for name in variants()}

TABLES = {
    "pretrained-networks": pretrained_networks,
    "other-networks": other_networks,
    "accuracy-and-time": accuracy_and_time,
    "measured-on": measured_on,
    "gpu": gpu,
    "recipes": recipe_table,
    "recipe-images": recipe_images,
    "recipe-settings": recipe_settings,
    "checkpoints": checkpoints,
    **{family: functools.partial(constructors, family) for family in FAMILIES},
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text("utf-8")), "utf-8")
