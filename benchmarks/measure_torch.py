"""timm on PyTorch, compiled or eager: a worker of gpu.py."""

import gc
import os
import time

import torch
from peers import adaptive_clip_grad, timm
from turns import attempt, lap, serve_calls

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
programs = []


def start(compilation_cache=None):
    """Return the versions; set the folder of the compilation cache."""
    if compilation_cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(compilation_cache, "torch")
    # Choose convolution algorithms by timing them, as XLA does.
    torch.backends.cudnn.benchmark = True
    return {"versions": {"torch": torch.__version__, "timm": timm.__version__}}


def prepare(cases):
    """Build and compile programs; `measure` then takes their indices.

    Args:
        cases: list of dicts as for `prepare` of measure_jax.py; for training also
            `compiled`, a bool.
    """
    return [attempt(_prepare, case) for case in cases]


def _prepare(case):
    programs.append({})
    on_card = device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_card else 0
    run = {"train": _training, "infer": _inference}[case["kind"]](case)
    run(3)
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    programs[-1].update(run=run, seconds=run(2))
    if not on_card:
        return {}
    return {"peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20}


def measure(index, lap_seconds):
    """Measure seconds per call of a prepared program, for about `lap_seconds`."""
    return lap(programs[index], lap_seconds)


def release():
    """Delete all prepared programs and free their memory."""
    programs.clear()
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _synchronize():
    if device.type == "cuda":
        torch.cuda.synchronize()


def _model(case):
    model = timm.create_model(case["network"])
    return model.to(device, memory_format=torch.channels_last)


def _images(case):
    images = torch.randn(case["batch"], 3, case["size"], case["size"], device=device)
    return images.contiguous(memory_format=torch.channels_last)


def _training(case):
    model, images = _model(case).train(), _images(case)
    labels = torch.zeros(case["batch"], dtype=torch.long, device=device)
    forward = torch.compile(model, dynamic=False) if case["compiled"] else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=True
    )

    def run(calls):
        start = time.perf_counter()
        for _ in range(calls):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                logits = forward(images)
                loss = torch.nn.functional.cross_entropy(logits, labels)
            loss.backward()
            adaptive_clip_grad(model.parameters())
            optimizer.step()
        _synchronize()
        return (time.perf_counter() - start) / calls

    return run


def _inference(case):
    model = _model(case).to(torch.bfloat16).eval()
    images = _images(case).to(torch.bfloat16)
    # This mode uses CUDA graphs; without them, small batches wait for the host.
    forward = torch.compile(model, mode="reduce-overhead", dynamic=False)
    waits = case["batch"] == 1

    def run(calls):
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(calls):
                forward(images)
                if waits:
                    _synchronize()
        _synchronize()
        return (time.perf_counter() - start) / calls

    return run


if __name__ == "__main__":
    serve_calls([start, prepare, measure, release])
