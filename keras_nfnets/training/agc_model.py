"""Keras model that trains with adaptive gradient clipping."""

import contextlib
import functools
import importlib
import inspect
import os
import types
import warnings

import keras

from keras_nfnets import checks
from keras_nfnets.backend import keras_internals, processes
from keras_nfnets.guards import model_files
from keras_nfnets.layers.units import mark_units
from keras_nfnets.training import replicas, state_trees
from keras_nfnets.training.accumulation import Clipped, clip_mean
from keras_nfnets.training.adaptive_clip import (
    CLASSIFIER_KERNEL,
    check_exclude,
    check_settings,
    clip_units,
    is_finite,
    warn_of_classifier,
)
from keras_nfnets.training.averaged_evaluation import AveragedEvaluation
from keras_nfnets.training.callbacks import (
    CheckTrainStep,
    StopAfterSkippedSteps,
)
from keras_nfnets.training.clipping_optimizers import clips
from keras_nfnets.training.ema import averages_in
from keras_nfnets.training.inner_optimizers import (
    all_optimizers,
    number_of_updates,
    updating_optimizers,
)
from keras_nfnets.training.metrics import ClipShare, SkippedSteps
from keras_nfnets.training.state import State

_NOT_AS_H5 = (
    "The old format of Keras cannot store the class and the settings of an AGCModel. Save "
    "the model to a path that ends in .keras, or its weights by `save_weights`, to "
    ".weights.h5."
)
# Endings of the paths that Keras's `load_weights` treats as files.
_ENDINGS_OF_FILES = (".keras", ".weights.h5", ".weights.json", ".h5", ".hdf5")


@keras.saving.register_keras_serializable("keras_nfnets")
class OnlyForAGCModel:
    """Part of the `compile` settings of an `AGCModel` that another class cannot load.

    `keras.models.clone_model` gives the settings of a subclass of `AGCModel` and
    `keras.Sequential` to a plain `keras.Sequential`.
    """

    KEY = "only_for"

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        raise ValueError(
            "A compiled AGCModel cannot become a model of another class, which does not "
            "know the settings of `compile`, such as `clip_factor`. Instead of "
            "`keras.models.clone_model(model)`, which makes a plain `keras.Sequential`, "
            "use `type(model).from_config(model.get_config())` and compile the result."
        )


@keras.saving.register_keras_serializable("keras_nfnets")
class AGCModel(keras_internals.ModelWithHooks):
    """A `keras.Model` whose `train_step` clips gradients by AGC before applying them.

    Use it in place of `keras.Model`: functionally (`AGCModel(inputs, outputs)`), as the
    base class of a custom model, or as a mixin for `keras.Sequential`
    (`class MySequential(AGCModel, keras.Sequential)`). `compile` takes six more
    arguments. `fit` logs `clip_share`: the fraction of the units that may be clipped
    (see `adaptive_clip`) that were clipped, averaged over the steps of the epoch.
    `model.clip_shares` then has the fraction of each stage, `{"clip_share_stem": 0.1,
    "clip_share_stage1": 0.2, ...}`, if layer names begin with `stem`, `stage1` and so on.
    In other networks it has that of each layer, by its name.

    The gradient of the unscaled loss is clipped, so loss scaling (`mixed_float16`) does
    not change the result. `jit_compile=True` is supported.

    The model works on TensorFlow, JAX and PyTorch, and on several devices and machines
    under `tf.distribute` strategies and those of `keras.distribution`. The result does
    not depend on the number of devices: the gradient of the whole batch is clipped.
    (An exception under `tf.distribute`, as in Keras: a loss that divides by the sum of
    sample weights, or by the number of unmasked values, does so on each replica.)

    Args:
        *args, **kwargs: those of `keras.Model`: `inputs`, `outputs` and `name`, or those
            of a custom class.

    Input and output: those of the layers; clipping does not restrict them. Gradients
    have the dtype of the variables.

    Raises:
        ValueError: in `compile`, a setting is out of range; in the first step,
            `agc_exclude` matches no variable of the model.

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

    # Functional models are instances of `FunctionalAGCModel`.

    def __new__(cls, *args, **kwargs):
        if cls is AGCModel and keras_internals.is_functional_call(args, kwargs):
            return FunctionalAGCModel.__new__(FunctionalAGCModel, *args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args, **kwargs):
        cls, functional = type(self), keras_internals.FunctionalModel
        is_functional = keras_internals.is_functional_call(args, kwargs)
        if is_functional and not issubclass(cls, functional):
            keras_internals.replace_base(cls, AGCModel, FunctionalAGCModel)
        super().__init__(*args, **kwargs)
        # Not attributes of the model: Keras would also list metrics that were replaced.
        self._metrics_of_training = types.SimpleNamespace(
            clip_share=ClipShare(), skipped=SkippedSteps()
        )
        self._averages = None
        self.clip_shares = {}

    def compile(
        self,
        *args,
        clip_factor=0.01,
        agc_eps=1e-3,
        agc_exclude=CLASSIFIER_KERNEL,
        sam_rho=None,
        ema_decay=None,
        skip_nonfinite=False,
        **kwargs,
    ):
        """Configure training as `keras.Model.compile` does, with clipping and more.

        Args:
            *args: see `keras.Model.compile`.
            clip_factor: float or None. See `adaptive_clip`; None disables clipping.
            agc_eps: float. `eps` of `adaptive_clip`.
            agc_exclude: `exclude` of `adaptive_clip`. By default the kernel (not the
                bias) of a layer named `"predictions"`, the classifier of this
                package's networks; a classifier with another name is clipped, with a
                warning. None clips everything.
            sam_rho: float or None. Radius of sharpness-aware minimization (arXiv
                2010.01412): the gradient is computed at the approximate maximum of the
                loss within this distance of the weights, which doubles the cost of a
                step. The published NFNet-F6 was trained with 0.05. None or 0 disables
                it.
            ema_decay: float in (0, 1) or None. Decay of an exponential moving average
                of the weights; the authors use 0.99999. After step `t` it is at most
                `(1 + t) / (10 + t)`. `evaluate`, and validation in `fit`, then also
                report each result for the averages, as `ema_loss`, ... The averages
                are saved with the optimizer, and `averaged_weights` makes them the
                weights. None disables averaging.
            skip_nonfinite: bool. Whether a step with a gradient that is not finite
                leaves weights, optimizer and averages unchanged. The logs count such
                steps as `skipped`; ten in a row end `fit` with a FloatingPointError.
            **kwargs: see `keras.Model.compile`.

        An optimizer that clips (`AGC`, `SGDAGC`) does so with its own settings: the
        model then does not clip, and there is no `clip_share`. With an optimizer that
        accumulates gradients, their mean is clipped.

        Raises:
            ValueError: settings that `adaptive_clip` rejects, a negative `sam_rho` or
                an `ema_decay` that is not between 0 and 1.

        Example:

        >>> model = keras_nfnets.NFNetTiny(input_shape=(32, 32, 1), classes=10)
        >>> model.compile(
        ...     keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        ...     "sparse_categorical_crossentropy",
        ...     clip_factor=0.02,
        ...     agc_exclude=["predictions", "stem_*/bias"],
        ... )

        Reference: Brock et al. (2021), arXiv 2102.06171, section 4 and appendix; the
        authors' experiment_nfnets.py. `sam_rho`: Foret et al. (2020), arXiv 2010.01412.
        """
        if clip_factor is not None:
            clip_factor, agc_eps = check_settings(clip_factor, agc_eps, agc_exclude)
        if sam_rho is not None:
            sam_rho = checks.number("sam_rho", sam_rho)
        if ema_decay is not None:
            ema_decay = checks.number("ema_decay", ema_decay, exclusive=True, below=1)
        skip_nonfinite = checks.flag("skip_nonfinite", skip_nonfinite)
        super().compile(*args, **kwargs)
        self._training_config = {
            "clip_factor": clip_factor,
            "agc_eps": agc_eps,
            "agc_exclude": agc_exclude,
            "sam_rho": sam_rho,
            "ema_decay": ema_decay,
            "skip_nonfinite": skip_nonfinite,
        }
        self.sam_rho = sam_rho
        self.perturbation = None
        self._clips = self._model_clips()
        self._skips = skip_nonfinite
        self._averages, self._has_training_state = None, False
        self._clip_gradients_was_called = self._train_step_is_checked = False
        self._test_step_was_called = False
        if self.built:
            self._build_metrics()

    @property
    def training_settings(self):
        """Settings of `compile` that `keras.Model` does not have, for experiment tracking.

        Tools such as MLflow know only Keras's settings, and those of the optimizer.

        Returns:
            A dict from the names of the arguments to floats, bools, strings, lists of
            strings or None. A function as `agc_exclude` is given by its name, another
            callable by its `repr`.
            `clip_factor` is None if the model does not clip, which includes models
            whose optimizer clips.

        Raises:
            ValueError: the model is not compiled.

        Example:

        >>> model = AGCModel(inputs := keras.Input((2,)), keras.layers.Dense(1)(inputs))
        >>> model.compile("sgd", "mse", clip_factor=0.02, ema_decay=0.999)
        >>> model.training_settings["clip_factor"], model.training_settings["sam_rho"]
        (0.02, None)
        """
        if not self.compiled:
            raise ValueError(
                "A model has settings of training when it is compiled: call `compile` "
                f"first. Received: {self.name!r}, which is not compiled"
            )
        settings = dict(self._training_config)
        if not self._clips:
            settings["clip_factor"] = None
        if callable(settings["agc_exclude"]):
            function = settings["agc_exclude"]
            # Other callables, such as `functools.partial`, have no name.
            settings["agc_exclude"] = getattr(function, "__qualname__", repr(function))
        return settings

    def _model_clips(self):
        """Whether this model clips: it should, and the optimizer does not.

        Raises:
            ValueError: only some optimizers of a `MultiOptimizer` clip.
        """
        if self._training_config["clip_factor"] is None or self.optimizer is None:
            return False
        updating = updating_optimizers(self.optimizer)
        clipping = [o for o in all_optimizers(self.optimizer) if clips(o)]
        clipped = [inner for o in clipping for inner in updating_optimizers(o)]
        if self.optimizer.built and clipped and len(clipped) < len(updating):
            raise ValueError(
                "Some optimizers of a MultiOptimizer clip by AGC, and the others do not: "
                "the model can clip for all or for none. Use none that clips, wrap the "
                "others in AGC, or pass `clip_factor=None`. Received: "
                f"{', '.join(o.name for o in updating)}, of which "
                f"{', '.join(o.name for o in clipping)} clip"
            )
        return not clipped

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:  # empty if the model was not compiled
            config.update(
                {
                    name: keras.saving.serialize_keras_object(value)
                    for name, value in self._training_config.items()
                }
            )
            config[OnlyForAGCModel.KEY] = keras.saving.serialize_keras_object(
                OnlyForAGCModel()
            )
        return config

    def compile_from_config(self, config):
        config = {k: v for k, v in config.items() if k != OnlyForAGCModel.KEY}
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.built and getattr(self, "optimizer", None) is not None:
            self.build_training_state()

    # The training state: variables of the optimizer and the metrics. They are created
    # before the first step, where Keras creates those of the optimizer.

    def _build_metrics(self):
        # For all weights, as layers may be frozen or unfrozen later.
        paths = [variable.path for variable in self.weights]
        for name, metric in self._own_metrics.items():
            if metric.built and metric.paths != paths:  # layers were added, or LoRA
                metric = type(metric)()
                setattr(self._metrics_of_training, name, metric)
            if not metric.built:
                metric.build(paths, self.name)

    def build_training_state(self):
        """Create the training state of a built model, as the first step would."""
        if self._has_training_state:  # called in each eager step
            return
        variables = self.trainable_variables
        if not self.optimizer.built:
            self.optimizer.build(variables)
        self._clips = self._model_clips()  # a `MultiOptimizer` may be complete only now
        self._build_metrics()
        decay = self._training_config["ema_decay"]
        self._averages = averages_in(self.optimizer, variables, decay)
        self._averaged = self._averages and AveragedEvaluation(self._averages, self)
        self.test_function = None  # it may know of no averages
        if self.sam_rho and keras.backend.backend() == "tensorflow":
            self.perturbation = replicas.perturbation(variables)
        self._has_training_state = True

    @property
    def _trainable_paths(self):
        return [variable.path for variable in self.trainable_variables]

    def built_for_training(self):
        if self._evaluates:
            self._build_metrics()
        elif self.compiled and self.optimizer is not None:
            self.build_training_state()
        if self._evaluates_averages:
            self._averaged.begin(self._variables_of_metrics)

    def symbolic_batch(self, iterator, is_distributed):
        # Without a strategy, the first step builds the model where this cannot.
        if is_distributed or self._can_build_without_batch(iterator):
            return replicas.symbolic_batch(iterator)
        return None

    def _can_build_without_batch(self, iterator):
        """Whether metrics and training state can be built before there is a batch."""
        return (
            (self._fits or self._evaluates_averages)
            and isinstance(self, keras_internals.FunctionalModel)
            and not self.run_eagerly
            and type(self).train_step is AGCModel.train_step
            and replicas.has_ranks(iterator)
        )

    def make_train_function(self, *args, **kwargs):
        # Outside of the step, where the initial values of the averages are available.
        if self.built:
            self.build_training_state()
            if self._averages and not self._is_trained:
                self._averages.restart()  # weights may have been set or loaded
        return super().make_train_function(*args, **kwargs)

    _fits = False  # whether `fit` is running
    _evaluates = False  # whether `evaluate` is running
    _loads = False  # whether `load_weights` is running

    @property
    def _evaluates_averages(self):
        return self._evaluates and self._averages is not None

    # The logs.

    @property
    def _own_metrics(self):
        """Metrics of training only, not of evaluation, by name."""
        metrics = {}
        if self._clips:
            metrics["clip_share"] = self.clip_share
        if self._skips:
            metrics["skipped"] = self.skipped
        return metrics

    @property
    def clip_share(self):
        """`ClipShare` of the current epoch."""
        return self._metrics_of_training.clip_share

    @property
    def skipped(self):
        """`SkippedSteps` of the current epoch."""
        return self._metrics_of_training.skipped

    def reset_metrics(self):
        super().reset_metrics()
        if self.compiled:
            for metric in self._own_metrics.values():
                metric.reset_state()

    @property
    def metrics_variables(self):
        variables = self._variables_of_metrics
        if self._evaluates_averages:
            return [*variables, *self._averaged.state(variables)]
        return variables

    @property
    def _variables_of_metrics(self):
        # A subclass may list these too.
        listed = super().metrics_variables
        known = {id(variable) for variable in listed}
        return [*listed, *(v for v in self._own_variables if id(v) not in known)]

    @property
    def metrics_names(self):
        """Names of the values that `evaluate` returns, in their order.

        They are complete when the model has been trained or evaluated, except for logs
        that an overridden `test_step` adds.
        """
        try:
            names = list(self.get_metrics_result())
        except ValueError:  # of Keras: there was no batch yet
            return super().metrics_names
        if self._averages:
            names += [f"ema_{name}" for name in names]
        return self._in_order(names)

    def _in_order(self, names):
        """Order the names of results: as Keras does, and then those of the averages."""
        averaged = {name for name in names if f"ema_{name}" in names}
        plain = [
            n for n in names if n.removeprefix("ema_") not in averaged or n in averaged
        ]
        ordered = self.logs_as_list({name: name for name in plain})
        ordered = [ordered] if isinstance(ordered, str) else list(ordered)
        return ordered + [f"ema_{name}" for name in ordered if name in averaged]

    @property
    def _own_variables(self):
        return [v for metric in self._own_metrics.values() for v in metric.variables]

    def finished_logs(self, logs, metrics_of):
        # The metrics cover all replicas; `logs` are those of the last step.
        own = {k: m.result() for k, m in self._own_metrics.items() if k in logs}
        if "clip_share" in own:
            self.clip_shares = self.clip_share.by_part()
        rest = {k: value for k, value in logs.items() if k not in own}
        return {**metrics_of(rest), **own, **self._averaged_logs()}

    def _averaged_logs(self):
        """Return the results of an evaluation with averaged weights, `{}` without one."""
        if not self._evaluates_averages:
            return {}
        if not self._test_step_was_called:
            warnings.warn(
                f"{type(self).__name__} has a `test_step` that does not call that of "
                "AGCModel, so there are no results of averaged weights (`ema_loss`, "
                "...). Call `super().test_step(...)`.",
                stacklevel=2,
            )
            return {}
        results = self._averaged.results(
            self._variables_of_metrics, self.get_metrics_result
        )
        return {f"ema_{name}": value for name, value in results.items()}

    # The step.

    def check_train_step(self):
        """Report settings that a `train_step` of a subclass has ignored.

        Called after the first step. Clipping is the default, so ignoring it only warns.

        Raises:
            ValueError: other settings of `compile` had no effect.
        """
        if self._clip_gradients_was_called or self._train_step_is_checked:
            return
        self._train_step_is_checked = True
        given = {
            name: value
            for name, value in self._training_config.items()
            if value not in (None, False) and not name.startswith("agc_")
        }
        if not self._clips:
            given.pop("clip_factor", None)
        if not given:
            return
        settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
        message = (
            f"{type(self).__name__} has a `train_step` that does not call that of "
            f"AGCModel, so these settings of `compile` have no effect: {settings}. Call "
            "`super().train_step(...)`, or clip in the optimizer, with "
            "`optimizer=keras_nfnets.AGC(...)`, and pass None for the settings."
        )
        default = inspect.signature(AGCModel.compile).parameters["clip_factor"].default
        if given != {"clip_factor": default}:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)

    def train_step(self, *args):
        """Train on one batch; the arguments are those of Keras on this backend."""
        backend = keras.backend.backend()
        module = importlib.import_module(f"keras_nfnets.training.train_step_{backend}")
        return module.train_step(self, *args)

    def test_step(self, *args):
        """Evaluate one batch; the arguments are those of Keras on this backend."""
        self._test_step_was_called = True
        test_step = super().test_step
        if not self._evaluates_averages:
            return replicas.to_be_reduced(test_step(*args))
        if keras.backend.backend() == "jax":
            return self._averaged.stateless_step(test_step, self, *args)
        logs = self._averaged.step(
            functools.partial(test_step, *args), lambda: self._variables_of_metrics
        )
        return replicas.to_be_reduced(logs)

    def training_loss(self, x, y, y_pred, sample_weight):
        """Compute the loss of a training step, also by an overridden `compute_loss`."""
        takes_training = "training" in inspect.signature(self.compute_loss).parameters
        training = {"training": True} if takes_training else {}
        return self.compute_loss(x, y, y_pred, sample_weight, **training)

    def update_loss_metric(self, loss, x):
        """Add the unscaled loss of batch `x` to the average that `fit` logs."""
        first = next(value for value in keras.tree.flatten(x) if value is not None)
        loss, weight = replicas.mean_over_own_examples(loss), keras.ops.shape(first)[0]
        keras_internals.loss_metric(self).update_state(loss, sample_weight=weight)

    def clip_gradients(self, gradients):
        """Clip gradients of the (scaled) loss, and update the metrics.

        Args:
            gradients: list, one gradient per trainable variable.

        Returns:
            A `Clipped` for the optimizer to apply, and a bool tensor (or True): whether
            it should be applied.
        """
        if self._clips and not self._clip_gradients_was_called:
            exclude = self._training_config["agc_exclude"]
            warn_of_classifier(self, exclude, "agc_exclude")
        self._clip_gradients_was_called = True
        if not gradients:
            warnings.warn(
                "There are no trainable weights: steps change none.", stacklevel=2
            )
        self.build_training_state()
        mark_units(self)  # also for an optimizer that clips
        finite = True
        if self._skips or self._scales_loss:
            each = [is_finite(gradient) for gradient in gradients]
            finite = keras.ops.all(keras.ops.stack([is_finite(None), *each]))
            if self._skips:
                self.skipped.update_state(each, self._trainable_paths)
        if self._clips:
            return self._clip_mean(gradients, finite), finite
        return Clipped(gradients), finite

    @property
    def _scales_loss(self):
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    @property
    def skips_nonfinite_steps(self):
        """Whether this model, not the optimizer, skips steps that are not finite."""
        return self._skips and not self._scales_loss

    def _clip_mean(self, gradients, finite):
        exclude = self._training_config["agc_exclude"]
        check_exclude(exclude, self.variables)
        variables = self.trainable_variables
        loss_scale = self.optimizer.scale_loss(keras.ops.ones(()))
        clip = functools.partial(
            clip_units,
            variables=variables,
            clip_factor=self._training_config["clip_factor"],
            eps=self._training_config["agc_eps"],
            exclude=exclude,
            loss_scale=loss_scale,
        )
        clipped = clip_mean(
            clip, self.optimizer, gradients, variables, loss_scale, finite
        )
        counts = keras.ops.logical_and(clipped.is_update, finite)
        self.clip_share.update_state(clipped.counts, self._trainable_paths, counts)
        return clipped

    def apply_clipped(self, gradients):
        """Clip gradients that are summed over replicas, and apply them.

        Returns:
            The second result of `clip_gradients`.
        """
        clipped, finite = self.clip_gradients(gradients)

        def apply(gradients, accumulated):
            step = keras.ops.copy(number_of_updates(self.optimizer))
            clipped._replace(gradients=gradients, accumulated=accumulated).apply(
                self.optimizer, self.trainable_variables
            )
            self.update_averages(step)

        arguments = [clipped.gradients, clipped.accumulated]
        condition = finite if self.skips_nonfinite_steps else None
        replicas.update(self.optimizer, apply, arguments, condition)
        return finite

    def update_averages(self, step):
        """Update the averages if the optimizer has made an update since `step`."""
        if self._averages:
            self._averages.update(step, number_of_updates(self.optimizer) > step)

    @property
    def state_of_steps(self):
        """Variables that a step changes, but a skipped step must not.

        They are statistics of layers, such as those of batch normalization, and metrics.
        Trainable weights and the optimizer are not updated in a skipped step. The state
        of random generators may change.
        """
        own = {id(variable) for variable in self._own_variables}
        metrics = [v for v in self.metrics_variables if id(v) not in own]
        return [*self.non_trainable_weights, *metrics]

    def state_before_step(self):
        """Return the `State` that a skipped step restores."""
        return State(self.state_of_steps if self._skips else [])

    def training_logs(self, x, y, y_pred, sample_weight, finite, before):
        """Update the compiled metrics and return the logs of a training step.

        Args:
            x, y, y_pred, sample_weight: the batch and its predictions.
            finite: the second result of `clip_gradients`.
            before: `State` from before the step, to restore if the step is skipped.
        """
        logs = self.compute_metrics(x, y, y_pred, sample_weight)
        if self._skips:
            before.restore(unless=finite)
            results = self.get_metrics_result()
            if results.keys() == logs.keys():
                logs = results
        logs.update({k: metric.result() for k, metric in self._own_metrics.items()})
        return replicas.to_be_reduced(logs)

    # Training and evaluation.

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        fit = super().fit
        # By position or keyword as given: tools that replace `keras.Model.fit`, such as
        # MLflow, look for some arguments among the keywords only.
        # The signature of what replaces it may be `(*args, **kwargs)`.
        names = [*inspect.signature(AGCModel.fit).parameters][1:]
        position = names.index("callbacks")
        is_positional = len(args) > position
        callbacks = args[position] if is_positional else kwargs.get("callbacks")
        callbacks = callbacks or []
        if self.compiled and not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.tree.flatten(callbacks)
            # Keras waits for each step if a callback is called after it.
            if type(self).train_step is not AGCModel.train_step:
                callbacks.append(CheckTrainStep())
            if self._skips:
                callbacks.append(StopAfterSkippedSteps())
            if is_positional:
                args = (*args[:position], callbacks, *args[position + 1 :])
            else:
                kwargs["callbacks"] = callbacks
        self._fits = True
        try:
            with self._no_perturbation_after_errors():
                return fit(*args, **kwargs)
        finally:
            self._fits = False

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        with self._no_perturbation_after_errors():
            logs = super().train_on_batch(*args, **kwargs)
        self.check_train_step()
        return logs

    @contextlib.contextmanager
    def _no_perturbation_after_errors(self):
        """Context in which an error in SAM's second pass does not change the weights."""
        try:
            yield
        except BaseException:
            if self.perturbation is not None:
                self.perturbation.restore()
            raise

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, return_dict=False, **kwargs):
        if self._trains_averages and self._is_trained:
            self.build_training_state()
        self._evaluates = True
        try:
            if self._averages:
                self.reset_metrics()
                self._averaged.begin(self._variables_of_metrics)
            logs = super().evaluate(*args, return_dict=True, **kwargs)
        finally:
            self._evaluates = False
        if return_dict:
            return logs
        results = [logs[name] for name in self._in_order(list(logs))]
        return results[0] if len(results) == 1 else results

    @property
    def _trains_averages(self):
        """Whether the model is ready to be trained with `ema_decay`."""
        return (
            self._is_ready_to_train and self._training_config["ema_decay"] is not None
        )

    @property
    def _is_ready_to_train(self):
        return self.built and self.compiled and self.optimizer is not None

    @property
    def _is_trained(self):
        """Whether the optimizer has updated the weights."""
        steps = number_of_updates(self.optimizer)
        return bool(steps > 0)

    # Files.

    @functools.wraps(keras.Model.save)
    def save(self, filepath, *args, **kwargs):
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(f"{_NOT_AS_H5} Received: filepath={filepath}")
        self._check_values_are_here(filepath)
        return super().save(filepath, *args, **kwargs)

    @functools.wraps(keras.Model.save_weights)
    def save_weights(self, filepath, *args, **kwargs):
        self._check_values_are_here(filepath)
        return super().save_weights(filepath, *args, **kwargs)

    def _check_values_are_here(self, filepath):
        """Raise a ValueError if parts of the weights are in other processes."""
        divided = [v.path for v in self.variables if processes.is_divided(v)]
        if divided:
            raise ValueError(
                "The file was not written: some weights are divided among several "
                "processes, which have only parts of them. Save with "
                "`training.Checkpoints` or `keras.callbacks.OrbaxCheckpoint` in all "
                "processes, restore the checkpoint in one process, and save the model "
                f"there. Received: filepath={filepath} for a model with divided weights: "
                f"{', '.join(divided[:3])}{', ...' if len(divided) > 3 else ''}"
            )

    @keras_internals.as_if_not_overridden
    @functools.wraps(keras.Model.get_config)
    def get_config(self):
        # `keras.saving.save_model` calls no method that is given the path.
        if keras_internals.is_saving_as_h5():
            raise ValueError(_NOT_AS_H5)
        return super().get_config()

    @functools.wraps(keras.Model.load_weights)
    def load_weights(self, filepath, *args, **kwargs):
        with model_files.checked(filepath):
            return self._load_weights(filepath, *args, **kwargs)

    def _load_weights(self, filepath, *args, **kwargs):
        # Keras knows files by their endings; folders may be remote, such as `gs://`.
        is_of_orbax = not str(filepath).endswith(_ENDINGS_OF_FILES)
        if is_of_orbax and not self._is_ready_to_train:
            raise ValueError(
                "Only a model that is built and compiled can load an Orbax checkpoint. "
                f"(Files end in {', '.join(_ENDINGS_OF_FILES)}.) Received: filepath="
                f"{filepath} for a model that is {'' if self.built else 'not '}built "
                f"and {'' if self.compiled else 'not '}compiled"
            )
        if is_of_orbax and "://" not in str(filepath):
            filepath = os.path.abspath(filepath)  # Orbax takes no other paths
        if not (is_of_orbax or self._trains_averages):
            return super().load_weights(filepath, *args, **kwargs)
        # Averages are in the state of the optimizer. Keras loads that state only if the
        # optimizer is built, and from an Orbax checkpoint only what is built. A file must
        # not change the learning rate, as it would not without averages.
        keeps_rates = not (self.optimizer.built or is_of_orbax)
        rates = self._constant_learning_rates() if keeps_rates else {}
        with keras_internals.strategy_scope(self):
            self.build_training_state()
        self._loads = True
        try:
            with (
                self._averages.loading() if self._averages else contextlib.nullcontext()
            ):
                result = super().load_weights(filepath, *args, **kwargs)
        finally:
            self._loads = False
        for optimizer, rate in rates.items():
            optimizer.learning_rate = rate
        return result

    @functools.wraps(keras.Model.set_state_tree)
    def set_state_tree(self, state_tree):
        if self._loads:
            state_trees.check(state_tree, self)
        return super().set_state_tree(state_tree)

    def _constant_learning_rates(self):
        """Return `{optimizer: float}` for the optimizers without a schedule."""
        return {
            optimizer: float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            for optimizer in updating_optimizers(self.optimizer)
            if isinstance(optimizer.learning_rate, keras.Variable)
        }

    def averaged_weights(self):
        """Context in which the weights are replaced by their averages, see `ema_decay`.

        Returns:
            A context manager, which restores the weights at its end.

        Raises:
            ValueError: there are no averages: the model was not compiled with
                `ema_decay`, or has not been trained since.

        Example:

        >>> model = AGCModel(inputs := keras.Input((2,)), keras.layers.Dense(1)(inputs))
        >>> model.compile("sgd", "mse", ema_decay=0.999)
        >>> history = model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
        >>> with model.averaged_weights():
        ...     model.save("averaged.keras")  # doctest: +SKIP
        """
        if not self._averages:
            ema_decay = getattr(self, "_training_config", {}).get("ema_decay")
            raise ValueError(
                "The weights have no averages yet. Compile the model with `ema_decay` and "
                f"train it first. Received: ema_decay={ema_decay}"
            )
        return self._averages.swapped_in()


@keras.saving.register_keras_serializable("keras_nfnets")
class FunctionalAGCModel(AGCModel, keras_internals.FunctionalModel):
    """Class of the models that `AGCModel(inputs, outputs)` creates."""
