"""A Keras model that trains with adaptive gradient clipping."""

import importlib
import inspect

import keras

from keras_nfnets.training.adaptive_clip import (
    CLASSIFIER_KERNEL,
    check_exclude,
    check_settings,
    clip_units,
    mark_units,
)
from keras_nfnets.training.clipping_optimizers import AGC, SGDAGC, check_optimizer

# Keras has no public name for the class of functional models; this is how to ask.
_Functional = type(keras.Model.__new__(keras.Model, None, None))


def _is_functional_call(args, kwargs):
    """Whether these are the arguments `(inputs, outputs)` of a functional model."""
    given = [*args[:2], *(kwargs[n] for n in ("inputs", "outputs") if n in kwargs)]
    tensors = keras.tree.flatten(given)
    return len(given) == 2 and all(isinstance(t, keras.KerasTensor) for t in tensors)


@keras.saving.register_keras_serializable("keras_nfnets")
class AGCModel(keras.Model):
    """A `keras.Model` whose `train_step` clips gradients by AGC before `apply_gradients`.

    Use it wherever `keras.Model` stands: functionally (`AGCModel(inputs, outputs)`),
    as the base of a class of your own, or beside `keras.Sequential`
    (`class MySequential(AGCModel, keras.Sequential)`). `compile` takes three more
    arguments, see there. `fit` logs `clip_share`: of the units that may be clipped
    (see `adaptive_clip`), the share that was, averaged over the epoch's steps.

    What is clipped is the gradient of the unscaled loss, so that loss scaling
    (`mixed_float16`) changes nothing, and `jit_compile=True` works.

    Works on TensorFlow, JAX and PyTorch.

    Example:

    >>> inputs = keras.Input((8,))
    >>> model = AGCModel(inputs, keras.layers.Dense(1)(inputs))
    >>> model.compile("sgd", "mse", clip_factor=0.02)
    >>> x = keras.random.normal((16, 8))
    >>> history = model.fit(x, x[:, :1], verbose=0)
    >>> sorted(history.history)
    ['clip_share', 'loss']

    Reference: Brock et al. (2021), arXiv 2102.06171, section 4.
    """

    # Keras makes a subclass functional by rewriting the bases of the class and of all
    # its ancestors, after which `AGCModel` could no longer be subclassed. So functional
    # models get a class of their own, `FunctionalAGCModel`.

    def __new__(cls, *args, **kwargs):
        if cls is AGCModel and _is_functional_call(args, kwargs):
            return FunctionalAGCModel.__new__(FunctionalAGCModel, *args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args, **kwargs):
        cls = type(self)
        if _is_functional_call(args, kwargs) and not issubclass(cls, _Functional):
            others = tuple(base for base in cls.__bases__ if base is not AGCModel)
            cls.__bases__ = (*others, FunctionalAGCModel)
        super().__init__(*args, **kwargs)
        self._clip_share = keras.metrics.Mean(name="clip_share")

    def compile(
        self,
        *args,
        clip_factor=0.01,
        agc_eps=1e-3,
        agc_exclude=CLASSIFIER_KERNEL,
        **kwargs,
    ):
        """`keras.Model.compile` with the settings of adaptive gradient clipping.

        Args:
            *args: see `keras.Model.compile`.
            clip_factor: see `adaptive_clip`; None turns clipping off.
            agc_eps: `eps` of `adaptive_clip`.
            agc_exclude: `exclude` of `adaptive_clip`. By default the kernel (not the
                bias) of a layer named `"predictions"`, the classifier of this
                package's networks. None clips everything.
            **kwargs: see `keras.Model.compile`.

        An optimizer that clips by itself (`AGC`, `SGDAGC`) is left to do so with its
        own settings; nothing is clipped twice, and there is no `clip_share`.

        Raises:
            ValueError: settings that `adaptive_clip` refuses, or an optimizer that
                accumulates gradients: AGC must see their average.
        """
        if clip_factor is not None:
            check_settings(clip_factor, agc_eps, agc_exclude)
        super().compile(*args, **kwargs)
        self._agc_config = {
            "clip_factor": clip_factor,
            "agc_eps": agc_eps,
            "agc_exclude": agc_exclude,
        }
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        clips_by_itself = any(
            isinstance(o, (AGC, SGDAGC)) for o in (self.optimizer, optimizer)
        )
        self._clips = clip_factor is not None and not clips_by_itself
        if self._clips:
            check_optimizer(optimizer)

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:  # empty for a model that was not compiled
            config.update(
                {
                    name: keras.saving.serialize_keras_object(value)
                    for name, value in self._agc_config.items()
                }
            )
        return config

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.built and getattr(self, "optimizer", None) is not None:
            self.optimizer.build(self.trainable_variables)

    def get_metrics_result(self):
        # Nothing is clipped in evaluation: `train_step` adds its own entry.
        results = super().get_metrics_result()
        results.pop("clip_share", None)
        return results

    def clip_gradients(self, gradients):
        """Clips gradients of the (scaled) loss, one a trainable variable, and counts."""
        mark_units(self)  # for an optimizer that clips, too
        if not self._clips:
            return gradients
        exclude = self._agc_config["agc_exclude"]
        check_exclude(exclude, self.variables)
        clipped = clip_units(
            gradients,
            self.trainable_variables,
            self._agc_config["clip_factor"],
            self._agc_config["agc_eps"],
            exclude,
            loss_scale=self.optimizer.scale_loss(keras.ops.ones(())),
        )
        self._clip_share.update_state(clipped.clipped_units / max(clipped.units, 1))
        return clipped.gradients

    def train_step(self, *args):
        """One step on one batch; its arguments are those of Keras's on this backend."""
        backend = keras.backend.backend()
        module = importlib.import_module(f"keras_nfnets.training.train_step_{backend}")
        return module.train_step(self, *args)

    def training_loss(self, x, y, y_pred, sample_weight):
        """The loss of a training step, by an overridden `compute_loss` too."""
        takes_training = "training" in inspect.signature(self.compute_loss).parameters
        training = {"training": True} if takes_training else {}
        return self.compute_loss(x, y, y_pred, sample_weight, **training)

    def update_loss_metric(self, loss, x):
        """Adds the (unscaled) loss of batch `x` to the average that `fit` logs."""
        metric = next(metric for metric in self.metrics if metric.name == "loss")
        first = next(value for value in keras.tree.flatten(x) if value is not None)
        metric.update_state(loss, sample_weight=keras.ops.shape(first)[0])

    def training_logs(self, x, y, y_pred, sample_weight):
        """Updates the compiled metrics and returns the logs of a training step."""
        logs = self.compute_metrics(x, y, y_pred, sample_weight)
        if self._clips:
            logs["clip_share"] = self._clip_share.result()
        return logs


@keras.saving.register_keras_serializable("keras_nfnets")
class FunctionalAGCModel(AGCModel, _Functional):
    """What `AGCModel(inputs, outputs)` returns."""
