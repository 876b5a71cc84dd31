"""Measures one network on an accelerator, in bfloat16: this package's or timm's."""

import os

# Neither may take all of the card's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from turns import peak_memory, serve, task


def ours(name, batch, training):
    """A call to measure, and the multiply-adds of one picture."""
    import jax
    import keras
    import numpy as np

    import keras_nfnets
    from keras_nfnets.models.figures import count_flops, variants

    keras.config.set_dtype_policy("mixed_bfloat16")
    variant = variants()[name]
    size = variant.train_size if training else variant.test_size
    model = getattr(keras_nfnets, name)(
        input_shape=(size, size, 3), classifier_activation=None
    )
    flops = count_flops(model)
    x = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype("float32")
    x = jax.device_put(x)
    if not training:
        folded = keras_nfnets.fold(model)
        state = [
            [variable.value for variable in variables]
            for variables in (
                folded.trainable_variables,
                folded.non_trainable_variables,
            )
        ]

        @jax.jit
        def infer(state, x):
            return folded.stateless_call(*state, x)[0]

        return lambda: jax.block_until_ready(infer(state, x)), flops
    y = jax.device_put(np.zeros(batch, "int32"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_nfnets.SGDAGC(1e-3), loss)
    return lambda: model.train_on_batch(x, y), flops


def timm(name, batch, training):
    import timm
    import torch
    from timm.utils.agc import adaptive_clip_grad

    from keras_nfnets.models.figures import variants

    torch.backends.cudnn.benchmark = True
    variant = variants()[name]
    size = variant.train_size if training else variant.test_size
    device = torch.device("cuda")
    model = timm.create_model(f"dm_nfnet_f{name[-1]}").to(
        device, memory_format=torch.channels_last
    )
    x = torch.randn(batch, 3, size, size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch, dtype=torch.long, device=device)
    compiled = torch.compile(model.train(training))
    half = torch.autocast("cuda", dtype=torch.bfloat16)
    if not training:

        def infer():
            with torch.inference_mode(), half:
                compiled(x)
            torch.cuda.synchronize()

        return infer, None
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=True
    )

    def step():
        optimizer.zero_grad()
        with half:
            loss = torch.nn.functional.cross_entropy(compiled(x), y)
        loss.backward()
        adaptive_clip_grad(model.parameters())
        optimizer.step()
        torch.cuda.synchronize()

    return step, None


def main():
    asked = task()
    call, flops = {"ours": ours, "timm": timm}[asked.pop("package")](**asked)
    serve(call, peak_memory(), flops=flops)


if __name__ == "__main__":
    main()
