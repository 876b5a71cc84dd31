"""Measurement of one network of timm, in an environment with timm and PyTorch."""

import os

import torch
import torch._inductor.config
from peers import adaptive_clip_grad, timm
from turns import peak_memory, serve, task

imported, asked = peak_memory(), task()
torch.set_num_threads(os.cpu_count())
layout = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
layout = layout[asked["layout"]]
model = timm.create_model(asked["network"]).to(memory_format=layout)
x = torch.randn(asked["batch"], 3, asked["size"], asked["size"])
x = x.contiguous(memory_format=layout)
if asked["kind"] == "train":
    model.train()
    y = torch.randint(0, 1000, (asked["batch"],))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True
    )

    def call():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        adaptive_clip_grad(model.parameters())
        optimizer.step()

    serve(call, imported)
else:
    model.eval()
    torch._inductor.config.freezing = asked.get("frozen", False)
    if asked.get("compiled"):
        model = torch.compile(model)
    with torch.inference_mode():
        serve(lambda: model(x), imported)
