"""Pages about tools that need packages of their own, each in an environment with these."""

import os
import pathlib
import shutil

import pages
import pytest
from environments import Environment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "packages"),
    pages.packages_of_pages().items(),
    ids=[page.name for page in pages.packages_of_pages()],
)
def test_code_of_a_page_runs_with_its_packages(page, packages, tmp_path):
    if "plot_model" in page.read_text() and not shutil.which("dot"):
        pytest.skip("Graphviz is not installed")
    environment = Environment(tmp_path / "environment", *packages)
    environment.run(pages.__file__, str(page), folder=tmp_path)


@pytest.mark.slow
def test_classes_of_kerashub_pass_its_own_tests(tmp_path):
    environment = Environment(tmp_path / "environment", "keras-hub[grain]")
    checks = pathlib.Path(__file__).with_name("kerashub_checks.py")
    environment.run(str(checks), folder=tmp_path)


@pytest.mark.slow
def test_a_page_of_packages_that_do_not_exist_fails(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="cannot install"):
        Environment(tmp_path / "environment", str(tmp_path / "missing"))


@pytest.mark.slow
def test_a_page_is_skipped_where_pip_has_no_index(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(pytest.skip.Exception):
        Environment(tmp_path / "environment", "optax")


@pytest.mark.slow
def test_mlflow_serves_a_folded_network(tmp_path):
    environment = Environment(tmp_path / "environment", "mlflow")
    program = pathlib.Path(__file__).with_name("mlflow_serving.py")
    environment.run(str(program), folder=tmp_path, NO_PROXY="127.0.0.1")
