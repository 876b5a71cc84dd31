"""`AGCModel.train_step` on PyTorch."""

import keras
import torch

from keras_nfnets.training.sam import gradients_of_sam, perturbed_variables
from keras_nfnets.training.state import State


def train_step(model, data):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

    def loss_and_gradients():
        y_pred = model(x, training=True)
        model.zero_grad()
        loss = model.training_loss(x, y, y_pred, sample_weight)
        if loss.requires_grad:  # else there are no trainable weights
            model.optimizer.scale_loss(loss).backward()
        return loss, y_pred, [v.value.grad for v in model.trainable_variables]

    before = model.state_before_step()
    loss, y_pred, gradients = loss_and_gradients()
    if model.sam_rho:
        after = State(model.state_of_steps)
        with perturbed_variables(model.trainable_variables, gradients, model.sam_rho):
            _, _, at_worst = loss_and_gradients()
        gradients = gradients_of_sam(gradients, at_worst, model.trainable_variables)
        after.restore()
    with torch.no_grad():
        finite = model.apply_clipped(gradients)
        model.update_loss_metric(loss, x)
        return model.training_logs(x, y, y_pred, sample_weight, finite, before)
