"""Evaluation with averaged weights, in the same pass as with the weights themselves."""

import keras
from keras import ops


class AveragedEvaluation:
    """Second state of a model's metrics: that of the predictions with averaged weights.

    For each batch, the test step of Keras runs twice: as it is, and with the averages and
    this state in place of the weights and the state of the metrics.

    Args:
        averages: `MovingAverages`.
    """

    def __init__(self, averages):
        self._averages = averages
        # A metric that no model knows: it only creates variables like those of metrics.
        self._store = keras.metrics.Metric(name="of_averages")
        self._copies = {}

    def _copies_of(self, variables):
        for variable in variables:
            if id(variable) not in self._copies:
                self._copies[id(variable)] = self._store.add_variable(
                    variable.shape,
                    "zeros",
                    dtype=variable.dtype,
                    aggregation=variable.aggregation,
                )
        return [self._copies[id(variable)] for variable in variables]

    def begin(self, variables):
        """Begin a pass over the data.

        Args:
            variables: list of the variables of the model's metrics, which are reset.
        """
        for variable, copy in zip(variables, self._copies_of(variables)):
            # A copy, as JAX may reuse the memory of each of them in a step.
            copy.assign(ops.copy(variable))

    def state(self, variables):
        """Return all variables of this evaluation, given those of the model's metrics."""
        return [*self._copies_of(variables), *self._averages.averages]

    def results(self, variables, get_results):
        """Call `get_results` where metrics have the state of this evaluation."""
        with self._scope(variables):
            return get_results()

    def _scope(self, variables):
        pairs = [
            *zip(self._averages.variables, self._averages.averages),
            *zip(variables, self._copies_of(variables)),
        ]
        return keras.StatelessScope(state_mapping=pairs, collect_losses=True)

    def step(self, test_step, metrics_variables):
        """Call a test step that changes the metrics (on TensorFlow and PyTorch).

        Args:
            test_step: callable without arguments.
            metrics_variables: callable that returns the list of their variables, which
                the first step may create.

        Returns:
            The result of the test step.
        """
        logs = test_step()
        variables = metrics_variables()
        with self._scope(variables) as scope:
            test_step()
        for variable, copy in zip(variables, self._copies_of(variables)):
            copy.assign(scope.get_current_value(variable))
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
            As the test step.
        """
        trainable, non_trainable, metrics = state
        averages = metrics[-len(self._averages.averages) :]
        count = (len(metrics) - len(averages)) // 2
        copies = metrics[count : 2 * count]
        logs, (*weights, plain) = test_step(state, data)
        by_id = dict(zip(map(id, self._averages.variables), averages))
        averaged_state = (
            [by_id.get(id(v), x) for v, x in zip(model.trainable_variables, trainable)],
            [
                by_id.get(id(v), x)
                for v, x in zip(model.non_trainable_variables, non_trainable)
            ],
            [*copies, *copies, *averages],
        )
        _, (_, _, averaged) = test_step(averaged_state, data)
        return logs, (*weights, [*plain[:count], *averaged[:count], *averages])
