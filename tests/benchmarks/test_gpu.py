"""benchmarks/gpu.py as a user runs it, but with `--smoke`: on CPUs, with JAX."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu
import gpu_bench
import gpu_list
import gpu_results

ENTRIES = gpu_list.measurements(smoke=True, has_timm=False)


def command(output, *options):
    return [
        *(sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke"),
        *("--output", str(output), *options),
    ]


def start(output, *options):
    # One device and no optimization, as programs run only a few times.
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environment = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.Popen(
        command(output, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Command-line option that lets runs share compiled programs."""
    return ["--compilation_cache", str(tmp_path_factory.mktemp("cache"))]


# One test, as the run takes long.
@pytest.mark.slow
def test_a_killed_run_continues_and_its_results_are_complete(cache, tmp_path):
    output = tmp_path / "with a space" / "results.json"
    output.parent.mkdir()
    first = start(output, *cache)
    try:
        wait_for(output.exists)
    finally:
        first.kill()
    first.communicate()
    after_kill = gpu_results.load(output)
    second = start(output, *cache)
    printed, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    document = gpu_results.load(output)
    # A kill loses nothing, and the next run continues.
    assert after_kill["measurements"]
    for name, result in after_kill["measurements"].items():
        assert document["measurements"][name] == result
        assert f"## {name}" not in printed
    assert list(document["measurements"]) == [entry.name for entry in ENTRIES]
    assert_complete(document, printed)
    assert_become_tables(document, tmp_path)
    # Results of other code are not continued.
    path = tmp_path / "other.json"
    gpu_results.save({**document, "code": "other"}, path)
    with pytest.raises(ValueError, match=r"results of another code.*Received: other"):
        gpu.earlier(path, document)


def assert_complete(document, printed):
    """Check that every measurement has figures and no error."""
    for name, result in document["measurements"].items():
        assert not gpu.has_failed(result), name
        for row in result.get("rows", ()):
            assert row["milliseconds"] > 0
            assert row["images_per_second"] == pytest.approx(
                row["batch"] / row["milliseconds"] * 1e3
            )
            assert row["peak_mib"] > 0
            assert 0 < row["share_of_peak"] < 1
        if result["kind"] == "correctness":
            assert all(target["met"] for target in result["targets"])
    kinds = {result["kind"] for result in document["measurements"].values()}
    assert kinds == {entry.kind for entry in ENTRIES}
    # Speed is shown but not judged on a CPU.
    assert "at least 1: not judged on a CPU" in printed


def assert_become_tables(document, tmp_path):
    folder = tmp_path / "cards"
    folder.mkdir()
    older = {**document, "date": "2020-01-01"}
    other = {**document, "device": "another card", "date": "2019-01-01"}
    for i, one in enumerate((document, older, other)):
        gpu_results.save(one, folder / f"{i}.json")
    newest = gpu_results.newest_of_each_card(folder)
    assert newest == sorted([document, other], key=lambda d: d["device"])
    text = "\n".join(gpu_results.markdown(document))
    for result in document["measurements"].values():
        for row in result.get("rows", ()):
            assert f"| {row['label']} | 32 | {row['batch']} | " in text


@pytest.fixture
def broken_bench():
    """Bench whose worker ends at once."""
    bench = gpu_bench.Bench({"ours": ("no_such_worker.py", sys.executable)}, True, None)
    yield bench
    bench.kill()


def test_a_failure_is_kept_in_the_file_and_the_next_measurement_starts(
    broken_bench, tmp_path
):
    document = {"measurements": {}}
    path = tmp_path / "results.json"
    entries = ENTRIES[:2]
    gpu.measure_all(entries, broken_bench, document, path, time.monotonic() + 1000)
    for entry in entries:
        error = gpu_results.load(path)["measurements"][entry.name]["error"]
        assert "no_such_worker.py ended with status 2" in error
    assert gpu.conclude(document, [], path) == 1


# Worker that takes no time to start, and knows all networks but NoSuchNet.
WORKER = """
import sys
sys.path.insert(0, {folder!r})
from turns import serve_calls

def start(compilation_cache):
    return {{}}

def prepare(cases):
    known = [case["network"] != "NoSuchNet" for case in cases]
    return [{{}} if is_known else {{"error": "no NoSuchNet"}} for is_known in known]

def measure(index, lap_seconds):
    return 0.5

def release():
    pass

serve_calls([start, prepare, measure, release])
"""


@pytest.mark.parametrize(
    "worker", ["a stand-in", pytest.param("measure_jax.py", marks=pytest.mark.slow)]
)
def test_a_contestant_that_fails_does_not_lose_the_others(worker, tmp_path):
    if worker == "a stand-in":
        script = tmp_path / "worker.py"
        script.write_text(WORKER.format(folder=str(BENCHMARKS)))
        worker = str(script)
    case = {"kind": "infer", "network": "normalizer-free", "size": 32, "batch": 1}
    contestants = [
        gpu_bench.Contestant("ours", "right", case),
        gpu_bench.Contestant("ours", "wrong", {**case, "network": "NoSuchNet"}),
    ]
    bench = gpu_bench.Bench({"ours": (worker, sys.executable)}, True, None)
    try:
        bench.start()
        result = gpu_list.training(bench, contestants)
    finally:
        bench.kill()
    right, wrong = result["rows"]
    assert right["milliseconds"] > 0
    assert "NoSuchNet" in wrong["error"]
    assert gpu.has_failed({"kind": "training", "took": 1.0, **result})


def test_a_measurement_starts_only_if_the_time_is_likely_to_suffice(
    broken_bench, tmp_path
):
    document = {"measurements": {}}
    entries = gpu_list.measurements(smoke=False, has_timm=True)
    left = max(entry.estimate for entry in entries) - 1
    too_long = [entry.name for entry in entries if entry.estimate > left]
    left_out = gpu.measure_all(
        entries, broken_bench, document, tmp_path / "r.json", time.monotonic() + left
    )
    assert left_out == too_long
    assert not set(too_long) & set(document["measurements"])


def test_a_missed_target_is_the_exit_status(tmp_path, capsys):
    [target] = gpu_list._targets(("milliseconds", 6.0, "at most", 5.0))
    result = {"kind": "training", "took": 1.0, "rows": [], "targets": [target]}
    document = {"measurements": {"a step": result}}
    assert gpu.conclude(document, [], tmp_path) == 1
    assert "a step: milliseconds 6, at most 5 wanted" in capsys.readouterr().err
    target["met"] = True
    assert gpu.conclude(document, [], tmp_path) == 0


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_and_says_where_the_results_are(cache, tmp_path):
    output = tmp_path / "results.json"
    process = start(output, *cache)
    wait_for(output.exists)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert f"What was measured is in {output}" in errors
    assert json.loads(output.read_text())["measurements"]


def test_a_machine_without_a_gpu_gets_told_of_smoke(tmp_path):
    without_smoke = [*command(tmp_path / "r.json")]
    without_smoke.remove("--smoke")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    found = subprocess.run(
        without_smoke, capture_output=True, text=True, env=environment, check=False
    )
    assert found.returncode == 2
    assert "--timm" in found.stderr or "--smoke" in found.stderr
    assert not list(tmp_path.iterdir())
