"""Evaluation with averaged weights, in the same pass as with the weights themselves."""

import keras
from keras import ops

from keras_nfnets.backend import keras_internals


class AveragedEvaluation:
    """State of an evaluation with averaged weights, next to that of the usual evaluation.

    For each batch, the test step of Keras runs twice: as it is, and with the averages and
    this state in place of the weights and of the state of metrics and layers.

    Args:
        averages: `MovingAverages`.
        model: the built `AGCModel`.
    """

    def __init__(self, averages, model):
        self._averages = averages
        self._model = model
        # Such as the state of a stateful RNN.
        self._of_layers = keras_internals.state_variables(model)
        # A metric that no model knows: it only creates variables like those of metrics.
        self._store = keras.metrics.Metric(name="of_averages")
        self._copies = {}

    def _copies_of(self, variables):
        for variable in variables:
            if id(variable) not in self._copies:
                # Without aggregation, TensorFlow could not assign to all replicas.
                is_separate = variable.aggregation == "none"
                self._copies[id(variable)] = self._store.add_variable(
                    variable.shape,
                    "zeros",
                    dtype=variable.dtype,
                    aggregation="only_first_replica"
                    if is_separate
                    else variable.aggregation,
                )
        return [self._copies[id(variable)] for variable in variables]

    def begin(self, of_metrics):
        """Begin a pass over the data.

        Args:
            of_metrics: list of the variables of the model's metrics, which are reset.
        """
        variables = [*of_metrics, *self._of_layers]
        # Copies of metrics, too, must be added up over replicas and workers.
        with keras_internals.strategy_scope(self._model):
            for variable, copy in zip(variables, self._copies_of(variables)):
                # A copy, as JAX may reuse the memory of each of them in a step.
                copy.assign(ops.copy(variable))

    def state(self, of_metrics):
        """Return all variables of this evaluation, given those of the model's metrics."""
        variables = [*of_metrics, *self._of_layers]
        return [*self._copies_of(variables), *self._averages.averages]

    def results(self, of_metrics, get_results):
        """Call `get_results` where metrics have the state of this evaluation."""
        with self._scope(of_metrics):
            return get_results()

    def _scope(self, variables):
        pairs = [
            *zip(variables, self._copies_of(variables)),
            *zip(self._averages.variables, self._averages.averages),
        ]
        return keras.StatelessScope(state_mapping=pairs, collect_losses=True)

    def step(self, test_step, get_of_metrics):
        """Call a test step that changes the state (on TensorFlow and PyTorch).

        Args:
            test_step: callable without arguments.
            get_of_metrics: callable that returns the list of the variables of metrics,
                which the first step may create.

        Returns:
            The result of the test step.
        """
        logs = test_step()
        variables = [*get_of_metrics(), *self._of_layers]
        with self._scope(variables) as scope:
            before = [scope.get_current_value(variable) for variable in variables]
            test_step()
        for variable, value in zip(variables, before):
            after = scope.get_current_value(variable)
            if after is not value:
                self._copies[id(variable)].assign(after)
        return logs

    def stateless_step(self, test_step, model, state, data):
        """Call a test step that takes and returns state (on JAX).

        Args:
            test_step: callable from state and data to logs and state.
            model: the `AGCModel`.
            state: lists of values: of the trainable variables, of the non-trainable ones,
                and of the metrics' variables followed by those of `self.state`.
            data: the batch.

        Returns:
            Logs and state, as the test step returns them.
        """
        trainable, non_trainable, metrics = state
        number = len(self._of_layers) + len(self._averages.averages)
        of_metrics, rest = metrics[:-number], metrics[-number:]
        copies = of_metrics[len(of_metrics) // 2 :]
        replaced = [*self._of_layers, *self._averages.variables]
        by_id = dict(zip(map(id, replaced), rest))
        variables = model.trainable_variables, model.non_trainable_variables
        averaged_state = [
            [by_id.get(id(v), value) for v, value in zip(*pairs)]
            for pairs in zip(variables, (trainable, non_trainable))
        ]
        logs, (*weights, plain) = test_step(state, data)
        _, (_, of_layers, averaged) = test_step(
            (*averaged_state, [*copies, *copies, *rest]), data
        )
        by_id.update(zip(map(id, model.non_trainable_variables), of_layers))
        rest = [by_id[id(v)] for v in self._of_layers] + rest[len(self._of_layers) :]
        return logs, (
            *weights,
            [*plain[: len(copies)], *averaged[: len(copies)], *rest],
        )
