"""`AGCModel.train_step` on TensorFlow, on one replica or several."""

import keras
import tensorflow as tf

from keras_nfnets.backend.per_example import inputs_are
from keras_nfnets.training import replicas_tensorflow as replicas
from keras_nfnets.training.sam import gradients_of_sam
from keras_nfnets.training.state import State


def train_step(model, data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    sizes = replicas.batch_sizes(x)
    batch_slice, weight = replicas.batch_slice(sizes), replicas.loss_weight(sizes)

    def loss_and_gradients():
        with tf.GradientTape() as tape, inputs_are(batch_slice):
            y_pred = model(x, training=True)
            loss = model.training_loss(x, y, y_pred, sample_weight)
            scaled_loss = model.optimizer.scale_loss(loss) * tf.cast(weight, loss.dtype)
        variables = model.trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        return loss, y_pred, replicas.sum_over_replicas(gradients, variables)

    before = model.state_before_step()
    loss, y_pred, gradients = loss_and_gradients()
    if model.sam_rho:
        model.build_training_state()
        after = State(model.state_of_steps)
        with model.perturbation.applied(gradients, model.sam_rho):
            _, _, at_worst = loss_and_gradients()
        gradients = gradients_of_sam(gradients, at_worst, model.trainable_variables)
        after.restore()
    finite = model.apply_clipped(gradients)
    model.update_loss_metric(loss, x)
    return model.training_logs(x, y, y_pred, sample_weight, finite, before)
