"""Conversion to a normalizer-free model with new weights, to be trained."""

import keras
from keras import ops

from keras_nfnets.backend import keras_internals
from keras_nfnets.conversion.converter import Converter, Signal
from keras_nfnets.conversion.roles import activation_of
from keras_nfnets.layers import (
    ScaledActivation,
    SkipGain,
    activation_gain,
    published_name,
)

# A variance closer to one than this is not corrected.
_NEAR = 0.02
# Ratio of squared mean to variance above which a signal is too far from the standard
# normal distribution, for which the published gains of activations hold.
_SHIFTED = 0.1


class NewWeightsConverter(Converter):
    """Converter that finds the constants which preserve the variance of the signal.

    The samples of a signal are those with all skip gains equal to one, and those with
    the initial skip gains.

    Args:
        graph: `Graph` of the model to convert.
        alpha: float. Standard deviation that a residual branch adds.
        skip_gain_initializer: initializer of the skip gains of residual branches.
    """

    def __init__(self, graph, alpha, skip_gain_initializer):
        super().__init__(graph)
        self._alpha = alpha
        self._initializer = skip_gain_initializer
        self._gains = {}  # by activation function

    def _layer_scale(self, call):
        self._signals[call.outputs[0]] = self._signals[call.inputs[0]]
        self._note(call, "removed: the skip gain of the branch replaces it")

    def _normalization(self, call):
        layer, signal = call.operation, self._signals[call.inputs[0]]
        output = call.outputs[0]
        if signal.is_unit:
            self._signals[output] = signal
            self._note(call, "removed: the variance of its input is one")
            return
        signal = signal._replace(shortcut=None)
        variance = self._seen_by(layer, signal.samples[0])
        self._check(call.operation.name, variance)
        shifted = self._mean_square(signal.samples[0]) > _SHIFTED * variance
        if abs(variance - 1) < _NEAR and not shifted:
            self._signals[output] = signal
            self._note(call, f"removed: the variance of its input is {variance:.2f}")
            return
        offset, centred = 0.0, ""
        if shifted:
            offset = self._mean(signal.samples[0]) * -(variance**-0.5)
            centred = ", and an offset per channel that removes the mean"
        name = self._name(layer.name)
        signal = self._rescaled(signal, variance**-0.5, name, offset)
        self._signals[output] = signal
        # After global pooling the variance depends on the content of the images.
        pooled = output in self._roles.pooled
        how = f"replaced by the constant factor {variance**-0.5:.3g}{centred}"
        self._note(call, how, None if pooled else signal, name)

    def _weighted(self, call):
        old, signal = call.operation, self._signals[call.inputs[0]]
        new = self._made.get(id(old))
        first = new is None
        if first:
            new = self._made[id(old)] = self._standardized(old, signal.tensor)
            if new is None:
                del self._made[id(old)]
                self._keep(call, "one weight per unit: nothing to standardize")
                return
            how = self._calibrate(new, signal.samples[0])
        else:
            how = "shared with an earlier call"
        signal = self._applied(new, signal)._replace(is_unit=first)
        self._note(call, f"{type(new).__name__}, {how}", signal, new.name)
        if old.activation is not keras.activations.linear:
            function = old.activation
            name = f"{new.name}_{getattr(function, '__name__', 'activation')}"
            signal, how = self._activated(function, signal, self._name(name))
            self._note(call, f"activation of the layer, {how}", signal, name)
        self._signals[call.outputs[0]] = signal

    def _calibrate(self, layer, sample):
        """Set the scale of a standardized layer to give its output a variance of one.

        If the output has a large mean, the bias removes it as normalization would.
        """
        outputs = self._at(layer, sample)
        variance = self._variance(outputs)
        self._check(layer.name, variance)
        layer.scale = variance**-0.5
        how = f"scale {layer.scale:.3g}"
        if self._mean_square(outputs) > _SHIFTED * variance:
            layer.bias.assign(-layer.scale * self._mean(outputs))
            how += ", bias that removes the mean"
        if not layer.center:
            # No change of the output yet, as filters start with a mean of zero.
            layer.input_mean = float(ops.mean(ops.cast(sample, "float32")))
            how += f", input mean {layer.input_mean:.3g}"
        return how

    def _attention(self, call):
        """Keep attention, and report the predicted and the measured variance of its output."""
        arguments, options = call.arguments(
            lambda value: self._signals[value].samples[0]
        )
        layer = self._keep(call, "attention")
        samples = self._signals[call.outputs[0]].samples
        variance, at_start = map(self._variance, samples)
        action = self.steps[-1].action
        if share := self._kept_by_attention(layer, arguments, options):
            kept, predicted = share
            action += (
                f" keeps {kept:.0%} of its tokens' variance, predicted {predicted:.2g}"
            )
        self.steps[-1] = self.steps[-1]._replace(
            action=action, variance=variance, variance_at_start=at_start
        )

    def _kept_by_attention(self, layer, arguments, options):
        """Return the share of tokens' variance that attention keeps, and predict its output's.

        The share is that of means of tokens, weighted by attention: the more similar the
        tokens, the larger it is. Of a single token, the layer returns a linear function,
        whatever the attention; the prediction is the share of this function's variance.
        Returns None where that is not known.
        """
        named = {**dict(zip(("query", "value", "key"), arguments)), **options}
        tokens = named["value"]
        if len(tokens.shape) != 3 or self._variance(tokens) == 0:
            return None
        try:
            with_scores = {**options, "return_attention_scores": True}
            _, scores = layer(*arguments, **with_scores)
        except ValueError:  # with flash attention
            return None
        means = ops.einsum("bhij,bjc->bhic", ops.stop_gradient(scores), tokens)
        kept = self._variance(means) / self._variance(tokens)
        # Twice, because Keras warns of a softmax over one value.
        alone = ops.repeat(ops.reshape(tokens, (-1, 1, tokens.shape[-1])), 2, axis=1)
        key = tokens if named.get("key") is None else named["key"]
        query, key = (
            ops.zeros((*alone.shape[:2], x.shape[-1]), alone.dtype)
            for x in (named["query"], key)
        )
        single = ops.stop_gradient(layer(query, alone, key=key))
        return kept, kept * self._variance(single)

    def _activation(self, call):
        value = call.inputs[0]
        signal = self._signals[value]
        function = activation_of(call.operation)
        name = self._name(call.operation.name)
        if signal.shortcut is not None and len(self._graph.consumers[value]) == 1:
            # With a skip gain of zero the input is the shortcut, and the output is the
            # shortcut of the next block: preserve the variance from one to the other.
            gain = self._keeping(function, signal.shortcut[0])
            signal = self._scaled_activation(function, gain, signal, name)
            how = f"gain {gain:.3g}, which preserves the variance of the shortcut"
        else:
            signal, how = self._activated(function, signal, name)
        self._signals[call.outputs[0]] = signal
        self._note(call, how, signal, name)

    def _activated(self, function, signal, name):
        """Rescale a signal to a variance of one if needed, and activate it."""
        variance = self._variance(signal.samples[0])
        self._check(name, variance)
        if not signal.is_unit and abs(variance - 1) >= _NEAR:
            signal = self._rescaled(signal, variance**-0.5, self._name(f"{name}_beta"))
        if self._mean_square(signal.samples[0]) > _SHIFTED:  # the variance is one
            # Already rectified, as in the first block of a pre-activation network.
            gain = self._keeping(function, signal.samples[0])
            how = f"gain {gain:.3g}, measured, as the mean of the input is not zero"
        else:
            # A gain that is not published takes half a second to compute.
            if function not in self._gains:
                self._gains[function] = activation_gain(published_name(function))
            gain = self._gains[function]
            how = f"gain {gain:.3g}"
        return self._scaled_activation(function, gain, signal, name), how

    def _keeping(self, function, sample):
        """Return the gain with which a function preserves the variance of a sample."""
        after = self._variance(self._at(function, sample))
        self._check(getattr(function, "__name__", "activation"), after)
        return (self._variance(sample) / after) ** 0.5

    def _scaled_activation(self, function, gain, signal, name):
        layer = ScaledActivation(published_name(function), gain=gain, name=name)
        return self._applied(layer, signal)

    def _residual(self, call, residual):
        branch, shortcut, name = self._ways(call, residual)
        variance = self._variance(branch.samples[0])
        self._check(call.operation.name, variance)
        gain = SkipGain(
            self._alpha * variance**-0.5,
            self._initializer,
            name=self._name(f"{name}_skip_gain"),
        )
        tensor = gain(branch.tensor)
        start = float(ops.convert_to_numpy(gain.skip_gain))
        scaled = Signal(
            tensor,
            tuple(x * (gain.alpha * g) for x, g in zip(branch.samples, (1.0, start))),
        )
        signal = self._applied(keras.layers.Add(name=name), scaled, shortcut)
        if residual.is_identity:
            signal = signal._replace(shortcut=shortcut.samples)
        self._signals[call.outputs[0]] = signal
        expected = [
            self._variance(x) + (self._alpha * g) ** 2
            for x, g in zip(shortcut.samples, (1.0, start))
        ]
        self._note(
            call,
            f"residual: alpha {self._alpha:.3g} over a standard deviation of "
            f"{variance**0.5:.3g}, skip gain {start:.3g}",
            signal,
            name,
            expected,
        )

    def _merge(self, call):
        signals = [self._signals[value] for value in call.inputs]
        name = self._name(call.operation.name)
        signal = self._applied(keras.layers.Add(name=name), *signals)
        variance = self._variance(signal.samples[0])
        self._check(call.operation.name, variance)
        name = self._name(f"{name}_scaled")
        signal = self._rescaled(signal, variance**-0.5, name)
        how = f"sum of {len(signals)} without a shortcut, times {variance**-0.5:.3g}"
        self._note(call, how, signal, name)
        self._signals[call.outputs[0]] = signal

    def _concatenation(self, call):
        parts, scaled = dict(self._signals), []
        for i, value in enumerate(call.inputs):
            variance = self._variance(parts[value].samples[0])
            self._check(call.operation.name, variance)
            if not 0.8 < variance < 1.25:
                name = self._name(f"{call.operation.name}_part{i}")
                parts[value] = self._rescaled(parts[value], variance**-0.5, name)
                scaled.append(f"{variance**-0.5:.3g}")
        how = ", inputs scaled by " + ", ".join(scaled) if scaled else ""
        self._keep(call, f"concatenation{how}", parts)

    def _rescaled(self, signal, factor, name, offset=0.0):
        dtype = keras.backend.standardize_dtype(signal.tensor.dtype)
        if not isinstance(offset, float):  # one per channel
            rank = len(signal.tensor.shape)
            offset = keras_internals.per_channel(
                ops.convert_to_numpy(offset), self._channel_axis(rank), rank
            )
        layer = keras.layers.Rescaling(factor, offset, dtype=dtype, name=name)
        return self._applied(layer, signal)

    def _mean_square(self, x):
        """Estimate the squared mean of a channel, averaged over channels."""
        return float(ops.mean(ops.square(self._mean(x)))) - self._error_of_mean(x)
