"""Execution of docstring examples and of the code in the documentation."""

import contextlib
import csv
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
import shlex
import types

import keras
import numpy as np
import pages
import pytest
from eager import eager_functions
from one_block import networks_of_one_block

import keras_nfnets
from keras_nfnets import (
    data,
    deploy,
    layers,
    models,
    pretrained,
    recipes,
    runs,
    training,
)
from keras_nfnets.cli.main import COMMANDS
from keras_nfnets.models.costs import costs, variants

ROOT = pathlib.Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"


def modules():
    # Train steps need their backend, importing __main__ would run the command, and
    # tests/tools runs the examples that need KerasHub.
    left_out = r"__main__|train_step_|\.hub$"
    if keras.backend.backend() != "tensorflow":
        # Tested once: what needs tf.data, and what no backend computes differently.
        left_out += r"|\.(cli|data|runs|settings|models|pretrained|conversion|deploy)\b"
    for module in pkgutil.walk_packages(keras_nfnets.__path__, "keras_nfnets."):
        if not re.search(left_out, module.name):
            # Complete runs, as in tests/runs.
            runs_ = r"runs\.(training_run|classifier|inference_time|dry_run|evaluation)"
            marks = pytest.mark.slow if re.search(runs_, module.name) else ()
            yield pytest.param(importlib.import_module(module.name), marks=marks)


@pytest.fixture
def _quickly(module):
    """Train and predict eagerly, and complete runs with a small network."""
    name = module.__name__
    with contextlib.ExitStack() as stack:
        # (The modules `models.nf...` have the constructors of all networks.)
        if re.search(r"runs\.(training_run|inference_time)$|models\.nf\w+$", name):
            stack.enter_context(networks_of_one_block())
        # The times are those of compiled networks.
        if re.search(r"\.(training|runs)\.(?!inference_time)", name):
            stack.enter_context(eager_functions())
        yield


@pytest.mark.usefixtures("_quickly")
@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.__name__)
def test_examples_of_docstrings(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"keras": keras, "np": np, "keras_nfnets": keras_nfnets}
    failures, _ = doctest.testmod(
        module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failures == 0


NAMESPACES = (
    *(keras_nfnets, training, data, pretrained, layers, deploy, models, runs, recipes),
)
# Of a name in several of them, the object in the first.
PUBLIC = {
    name: getattr(namespace, name)
    for namespace in reversed(NAMESPACES)
    for name in namespace.__all__
}
# Constructors of networks; their docstrings are generated from those of builders.
NETWORKS = set(variants())
# Objects that raise no errors.
WITHOUT_ERRORS = {
    *("Architecture", "Conversion", "Convention", "Step", "TrainingLog"),
    *("draw_signal_propagation", "find_checkpoint", "folder_of", "has_workers"),
    *("is_chief", "is_weight_file", "list_checkpoints", "load_digits", "published"),
    *("published_name", "random_pictures", "register", "steps_per_epoch"),
    *("without_memory", "RunError", "LostWorkerError", "ClassScore", "Prediction"),
    *("Evaluation", "Results", "Run", "RunCallback", "Progress"),
    *("InferenceTimes", "SaturationLog"),
}
# Objects without a reference in a paper or in published code.
OF_OUR_OWN = {
    *("Architecture", "Checkpoint", "Checkpoints", "Conversion", "Source", "Step"),
    *("SymmetricMaxPooling2D", "TrainingLog", "create", "decode_predictions", "export"),
    *("feature_pyramid", "find", "find_checkpoint", "find_network", "find_pictures"),
    *("fold", "folder_of", "freeze", "has_workers", "inference_function", "is_chief"),
    *("intermediate_features", "is_weight_file", "SaturationLog"),
    *("list_checkpoints", "load_digits", "published", "random_pictures"),
    *("read_picture", "recognize", "register", "reset_classifier", "steps_per_epoch"),
    "strategy",
    *("without_memory", *runs.__all__),
}
# Functions that return nothing.
ACTIONS = {
    *(
        "check_crop_mode",
        "compile_model",
        "draw_signal_propagation",
        "export",
        "freeze",
        "load_deepmind",
    ),
    *("load_timm", "plot_signal_propagation", "register"),
}


def described():
    for namespace in NAMESPACES:
        for name in namespace.__all__:
            thing = getattr(namespace, name)
            if callable(thing) and name not in NETWORKS:
                yield pytest.param(name, thing, id=f"{namespace.__name__}.{name}")


@pytest.mark.parametrize(("name", "thing"), list(described()))
def test_docstring_of_a_public_name_has_all_its_parts(name, thing):
    text = thing.__doc__
    assert "Example:" in text and ">>> " in text
    if isinstance(thing, type):
        assert re.search(
            r"^ *(Args|Attributes):|Takes every\s+argument", text, re.MULTILINE
        )
    else:
        parameters = inspect.signature(thing).parameters
        assert not parameters or "Args:" in text
        is_load = thing is pretrained.load
        assert name in ACTIONS or is_load or "Returns:" in text
    if isinstance(thing, type) and issubclass(thing, keras.layers.Layer):
        assert re.search("^ *(Input|Input and output|Output)[: ]", text, re.MULTILINE)
    assert name in WITHOUT_ERRORS or "Raises:" in text
    of_our_own = name in OF_OUR_OWN or thing is pretrained.load
    of_our_own |= thing is getattr(recipes, name, None)
    assert of_our_own or "Reference:" in text


BUILDERS = ("NFNet", "NFResNet", "NFRegNet")


@pytest.mark.parametrize("name", [*BUILDERS, *sorted(NETWORKS)])
def test_docstring_of_a_network_has_all_arguments_with_their_defaults(name):
    text = PUBLIC[name].__doc__
    assert max(map(len, text.splitlines())) <= 88
    arguments = text.partition("\nArgs:\n")[2].partition("\n\nReturns:\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", arguments, re.MULTILINE)
    parameters = inspect.signature(PUBLIC[name]).parameters
    assert [argument for argument, _ in entries] == list(parameters)
    for argument, meaning in entries:
        default = parameters[argument].default
        shown = f'`"{default}"`' if isinstance(default, str) else str(default)
        has_default = default is not inspect.Parameter.empty
        assert meaning.count("Defaults") == has_default
        assert not has_default or meaning.split()[-1] == f"{shown}."


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_docstring_of_a_network_names_its_builder_and_its_source(name):
    start = rf"Build {name}, a variant of `({'|'.join(BUILDERS)})`\.\n\n"
    [builder] = re.findall(start, PUBLIC[name].__doc__)
    assert f"This is `{builder}` with depths=" in PUBLIC[name].__doc__
    for section in ("Raises:", "Example:", "Reference: "):
        assert section in PUBLIC[name].__doc__


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    families = set(re.findall(r"\{generated-table\} (\w+)", pages))
    entries = set()
    for path, name in re.findall(r"auto\w+:: (\S+)\.(\w+)$", pages, re.MULTILINE):
        with contextlib.suppress(ImportError):  # of `hub`, without KerasHub
            entries.add(id(getattr(importlib.import_module(path), name)))
    for namespace in NAMESPACES:
        for name in namespace.__all__:
            thing = getattr(namespace, name)
            if isinstance(thing, types.ModuleType):
                continue
            if name in NETWORKS:
                assert re.search(r"`(\w+)`", PUBLIC[name].__doc__)[1] in families, name
            elif callable(thing):
                assert id(thing) in entries, f"{namespace.__name__}.{name}"
            else:
                assert re.search(rf"`[\w.]*{name}`", pages), name


# Pages that are written by hand.
PAGES = [
    README,
    *(p for p in sorted(DOCS.rglob("*.md")) if "repository" not in p.parts),
]
# Pages that need a server or packages of their own have their own tests.
ELSEWHERE = {"sharing.md", *(page.name for page in pages.packages_of_pages())}
# The guides need TensorFlow: they export, or have custom training loops.
ON_THIS_BACKEND = (
    [page for page in PAGES if page.name not in ELSEWHERE]
    if keras.backend.backend() == "tensorflow"
    else [README]
)


# Pages that compile what they train or export. The others run eagerly.
COMPILED = {
    *("README.md", "getting_started.md", "deploy.md", "many_devices.md", "adapting.md"),
}


@pytest.fixture
def _page_quickly(page):
    with contextlib.ExitStack() as stack:
        if page.name == "training_runs.md":
            stack.enter_context(networks_of_one_block())
        if page.name not in COMPILED:
            stack.enter_context(eager_functions())
        yield


# Complete runs and exports, as in tests/runs, tests/data and tests/deploy; and pages about
# the same functions for users of other libraries, of which timm's is run each time.
SLOW = {
    *("getting_started.md", "training_runs.md", "data.md", "deploy.md"),
    *("authors.md", "kecam.md", "keras_applications.md", "adapting.md"),
}


@pytest.mark.usefixtures("_page_quickly")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else ())
        for page in ON_THIS_BACKEND
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page):
    for address in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in address or (page.parent / address).exists(), address


def test_there_is_code_in_the_readme():
    assert README.read_text().count("```python\n") >= 4


def command_lines():
    for page in PAGES:
        text = page.read_text()
        fence = None
        for line in text.splitlines():
            if line.startswith("```"):
                fence = line if fence is None else None
            elif fence == "```" and "keras-nfnets " in line:
                yield page.name, line[line.index("keras-nfnets ") :]
        # Commands inside a sentence.
        for line in re.findall(r"(?<!`)`(keras-nfnets [^`\n]+)`", text):
            yield page.name, line


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())))
def test_command_lines_of_the_pages_parse(page, line):
    _, name, *arguments = shlex.split(line, comments=True)
    if name != "COMMAND" and "--help" not in arguments:
        COMMANDS[name].parse(arguments)


def test_figures_of_the_readme_are_those_of_the_networks():
    head = ["Network", "Parameters (M)", "FLOPs (G)", "Test size (px)", "Top-1 (%)"]
    head = f"| {' | '.join([*head, 'Latency (ms)'])} |\n"
    _, _, table = README.read_text().partition(head)
    lines = table.partition("\n\n")[0].splitlines()[1:]
    assert len(lines) >= 7
    with open(DOCS / "latency.csv", newline="") as file:
        milliseconds = {r["network"]: r["milliseconds"] for r in csv.DictReader(file)}
    for line in lines:
        name, *figures = line.strip("| ").split(" | ")
        variant, (parameters, flops) = variants()[name], costs()[name]
        # The first is that of weights="imagenet".
        published = pretrained.published(getattr(keras_nfnets, name).architecture())
        assert all(c.size == variant.test_size for c in published[:1])
        assert figures == [
            f"{parameters / 1e6:.1f}",
            f"{flops / 1e9:.1f}",
            f"{variant.test_size}",
            f"{published[0].top1:.2f}" if published else "–",
            milliseconds.get(name, "–"),
        ]


def test_committed_tables_are_those_of_the_package(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    tables = importlib.import_module("tables")
    for page in tables.PAGES:
        text = page.read_text("utf-8")
        assert tables.with_tables(text) == text, "Write it by: python docs/tables.py"


def test_latencies_were_measured_at_the_networks_own_sizes():
    with open(DOCS / "latency.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 12
    for row in rows:
        assert int(row["size"]) == variants()[row["network"]].test_size
        assert float(row["least"]) <= float(row["milliseconds"]) <= float(row["most"])
