"""Commands run eagerly here, as they compute little."""

import pytest
from eager import eager_functions

# `export` and `benchmark` do little but compile, and training in half precision takes
# many steps.
COMPILED = {"test_export.py", "test_benchmark.py", "test_precision.py"}


@pytest.fixture(scope="module", autouse=True)
def _eagerly(request):
    if request.path.name in COMPILED:
        yield
    else:
        with eager_functions():
            yield
