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
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
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


@pytest.fixture(scope="module")
def killed_and_continued(cache, tmp_path_factory):
    """Results after a killed run and after the next run, and the output of the latter."""
    output = tmp_path_factory.mktemp("with a space") / "results.json"
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
    return after_kill, gpu_results.load(output), printed


@pytest.mark.slow
def test_a_kill_loses_nothing_and_the_next_run_continues(killed_and_continued):
    before, after, printed = killed_and_continued
    assert before["measurements"]
    for name, result in before["measurements"].items():
        assert after["measurements"][name] == result
        assert f"## {name}" not in printed
    assert list(after["measurements"]) == [entry.name for entry in ENTRIES]


@pytest.mark.slow
def test_every_measurement_has_figures_and_no_error(killed_and_continued):
    _, document, printed = killed_and_continued
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


@pytest.mark.slow
def test_results_become_tables(killed_and_continued, tmp_path):
    _, document, _ = killed_and_continued
    older = {**document, "date": "2020-01-01"}
    other = {**document, "device": "another card", "date": "2019-01-01"}
    for i, one in enumerate((document, older, other)):
        gpu_results.save(one, tmp_path / f"{i}.json")
    newest = gpu_results.newest_of_each_card(tmp_path)
    assert newest == sorted([document, other], key=lambda d: d["device"])
    text = "\n".join(gpu_results.markdown(document))
    for result in document["measurements"].values():
        for row in result.get("rows", ()):
            assert f"| {row['label']} | 32 | {row['batch']} | " in text


@pytest.mark.slow
def test_results_of_other_code_are_not_continued(killed_and_continued, tmp_path):
    _, document, _ = killed_and_continued
    path = tmp_path / "results.json"
    gpu_results.save({**document, "code": "other"}, path)
    with pytest.raises(ValueError, match=r"results of another code.*Received: other"):
        gpu.earlier(path, document)


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


def test_a_contestant_that_fails_does_not_lose_the_others(tmp_path):
    case = {"kind": "infer", "network": "normalizer-free", "size": 32, "batch": 1}
    contestants = [
        gpu_bench.Contestant("ours", "right", case),
        gpu_bench.Contestant("ours", "wrong", {**case, "network": "NoSuchNet"}),
    ]
    bench = gpu_bench.Bench({"ours": ("measure_jax.py", sys.executable)}, True, None)
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
