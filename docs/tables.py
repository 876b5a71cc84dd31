"""Directive for the tables of the documentation that are generated from the package."""

import csv
import dataclasses
import functools
import inspect
import pathlib
import re
import sys

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

import keras_nfnets
from keras_nfnets import pretrained, recipes
from keras_nfnets.models.costs import costs, count_flops, variants

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import gpu_results

_LATENCY = pathlib.Path(__file__).parent / "latency.csv"


class GeneratedTable(SphinxDirective):
    """`{generated-table} NAME`, where NAME is a function of this module."""

    required_arguments = 1

    def run(self):
        lines = TABLES[self.arguments[0]]()
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "tables.py"), 0, container)
        for table in container.findall(nodes.table):
            table["classes"].append("generated")
        return container.children


def zoo():
    """Return a table of all networks, with their costs and published accuracy."""
    latency, known = {row["network"]: row for row in latencies()}, costs()
    rows, listed = [], []
    for name, variant in variants().items():
        constructor = getattr(keras_nfnets, name)
        published = pretrained.published(constructor.architecture())
        listed += published
        rows.append(
            _zoo_row(
                f"`{name}`",
                known[name],
                (variant.train_size, variant.test_size),
                published,
                latency.get(name),
            )
        )
    # Checkpoints of networks that are built by a constructor with another convention.
    for checkpoint in pretrained.list_checkpoints():
        if checkpoint not in listed:
            network = pretrained.find_network(checkpoint.network)
            name = f"`{network.constructor.__name__}`, timm's"
            size = checkpoint.size
            with pretrained.without_memory():
                model = network.build(input_shape=(size, size, 3))
                cost = model.count_params(), count_flops(model)
            sizes = (checkpoint.train_size, size)
            rows.append(_zoo_row(name, cost, sizes, [checkpoint], None))
    return _markdown(
        [
            *("network", "parameters, M", "FLOPs, G", "float32 file, MB"),
            *("train / test size", "top-1, %", "one picture, ms"),
        ],
        rows,
        "lrrrrrr",
    )


def _zoo_row(name, cost, sizes, published, latency):
    (parameters, flops), (train, test) = cost, sizes
    on_imagenet = [c for c in published if c.class_names is None]
    return [
        name,
        f"{parameters / 1e6:.2f}" if parameters < 1e7 else f"{parameters / 1e6:.1f}",
        f"{flops / 1e9:.2f}" if flops < 1e9 else f"{flops / 1e9:.1f}",
        f"{4 * parameters / 1e6:,.1f}"
        if parameters < 1e6
        else f"{parameters / 250e3:,.0f}",
        f"{train} / {test}",
        f"{on_imagenet[0].top1:.2f}" if on_imagenet else "",
        latency["milliseconds"] if latency else "",
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
                f"`{recipe.model}`",
                f"{recipe.batch_size:,}",
                _number(recipe.clip_factor),
                _number(recipe.learning_rate),
                _number(recipe.weight_decay),
                f"{train} / {test}",
                str(recipe.epochs),
            ]
        )
    return _markdown(
        [
            *("recipe", "network", "batch", "clip factor", "learning rate"),
            *("weight decay", "train / test size", "epochs"),
        ],
        rows,
        "llrrrrrr",
    )


def recipe_pictures():
    """Return a table of preprocessing, augmentation and precision of all recipes."""
    rows = [
        [
            f"`{name}`",
            recipe.crop_mode or "the data's own",
            recipe.precision,
            recipe.augmentation or "the data's own",
        ]
        for name, recipe in recipes.RECIPES.items()
    ]
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
            f"`{c.authors_file}`" if c.authors_file else "",
        ]
        for c in pretrained.list_checkpoints()
    ]
    return _markdown(
        [
            *("name", "network", "train / test size", "crop", "top-1, %"),
            "the authors' file",
        ],
        rows,
        "llrlrl",
    )


def constructors(family):
    """Return a table of the constructors of a family, with the arguments they fix."""
    module = getattr(keras_nfnets, family).__module__
    members = {
        name: variant
        for name, variant in variants().items()
        if getattr(keras_nfnets, name).__module__ == module
    }
    # In some families the widths follow from the depths or from a factor.
    fixed = [
        key
        for key in ("depths", "widths")
        if all(hasattr(variant, key) for variant in members.values())
    ]
    rows = [
        [
            f"`{name}`",
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
    return "none" if value is None else f"{value:g}"


def _markdown(head, rows, alignment):
    rules = {"l": "---", "r": "---:"}
    lines = [head, [rules[letter] for letter in alignment], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


_FAMILIES = {pretrained.find_network(name).architecture.builder for name in variants()}

TABLES = {
    "zoo": zoo,
    "measured-on": measured_on,
    "gpu": gpu,
    "recipes": recipe_table,
    "recipe-pictures": recipe_pictures,
    "recipe-settings": recipe_settings,
    "checkpoints": checkpoints,
    **{family: functools.partial(constructors, family) for family in _FAMILIES},
}
