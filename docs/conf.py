"""Sphinx configuration: sphinx-build -W --keep-going -b html docs docs/_build/html"""

import os
import pathlib
import sys
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import directives
import docstrings
import keras
import repository

import keras_nfnets

# Base classes of `keras_nfnets.hub`, so that the documentation is built without KerasHub.
# (Keras registers no classes that Sphinx mocks.)
kerashub = types.ModuleType("keras_hub")
kerashub.__version__ = "0.32"
kerashub.models, kerashub.layers = types.SimpleNamespace(), types.SimpleNamespace()
kerashub.models.FeaturePyramidBackbone = kerashub.models.ImageClassifier = keras.Model
kerashub.models.ImageClassifierPreprocessor = keras.layers.Layer
kerashub.layers.ImageConverter = keras.layers.Layer
sys.modules["keras_hub"] = kerashub

project = "keras_nfnets"
author = "The keras_nfnets authors"
copyright = f"2026, {author}. Apache 2.0"
version = release = keras_nfnets.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# A line of text may begin with a percent sign, as on GitHub.
myst_disable_syntax = ["myst_line_comment"]

napoleon_numpy_docstring = False
napoleon_use_rtype = False
# The docstrings give the types of attributes.
napoleon_attr_annotations = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# Long signatures have a line per argument.
python_maximum_signature_line_length = 80

# Code blocks without a language are commands and output.
highlight_language = "text"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"keras_nfnets {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css", "images.css", "code.css"]


def setup(app):
    repository.copy_pages()
    app.connect("source-read", repository.lead_to_copies)
    # Run before napoleon, which has the default priority of 500.
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)
    app.connect("autodoc-process-signature", docstrings.signature)
    app.add_directive("generated-table", directives.GeneratedTable)
