"""Tests, by file, that run on every backend, all of their cases or those in brackets.

In these files, the other tests run on TensorFlow only. What is written with `keras.ops`
needs one network per kind of model: JAX compiles each operation for each shape.
"""

import collections

ON_EVERY_BACKEND = {
    "test_docs.py": {"test_code_of_a_page", "test_examples_of_docstrings"},
    "test_experiments.py": {
        "test_runs_are_reproducible_and_a_diverged_run_is_a_result",
        "test_batch_norm_leaks_and_the_normalizer_free_network_does_not",
        "test_only_the_network_with_agc_is_clipped",
    },
    "test_fine_tuning.py": {
        "test_a_new_classifier_classifies_the_features_of_the_network[True]",
        "test_layers_learn_at_rates_that_decay_with_depth[False]",
        "test_features_of_any_layer_are_those_of_the_network[True]",
    },
    "test_finetuning.py": {
        "test_a_frozen_network_stays_as_it_is_and_an_unfrozen_one_learns",
    },
    "test_folding.py": {
        "test_loads_without_this_package",
        "test_dtype_policies[options1-mixed_bfloat16]",
        "test_inputs_are_cast_as_by_the_layer[block-mixed_float16]",
        "test_custom_models",
        "test_what_layers_have_adapted_comes_along",
        "test_nothing_is_random",
        "test_folded_models_do_not_depend_on_the_device",
    },
    "test_portable.py": {
        "test_no_parameter_is_newer_than_keras_3_9[tiny]",
        "test_a_loaded_model_is_the_same_and_has_the_names",
    },
    "test_inference.py": {
        "test_predictions_are_those_of_the_network[keras-3]",
        "test_predictions_are_those_of_the_network[onnxruntime-3]",
        "test_several_inputs_and_outputs[keras]",
        "test_several_inputs_and_outputs[onnxruntime]",
        "test_other_shapes_are_refused[keras-shape1]",
    },
    "test_networks.py": {
        "test_network_computes_what_the_authors_code_does[haiku_nfnet_tiny_odd]",
        "test_network_computes_what_timm_does[test_nfnet]",
        "test_networks_save_clone_and_train_in_every_policy[options1-policies1]",
    },
    "test_transformers.py": {
        "test_variance_is_as_expected_on_other_inputs[constants-ViT]",
        "test_result_trains_and_can_be_saved_and_folded[dynamic_erf]",
        "test_saturated_shares_are_measured_and_logged",
    },
    "test_normalizer_free.py": {
        "test_variance_is_as_expected_on_other_noise[sequential-ones]",
        "test_variance_is_as_expected_on_other_noise[of residual blocks-ones]",
        "test_result_is_saved_and_trains",
        "test_subclassed_model_is_traced",
        "test_structure_of_inputs_and_outputs_stays",
        "test_what_cannot_be_handled_is_an_error_that_names_the_layer",
    },
    "test_onnx.py": {
        "test_networks_have_one_convolution_per_layer_and_one_transpose[ECA-NFNet]",
        "test_layers[groups and dilation]",
        "test_layers[batch-normalized]",
        "test_layers[operations]",
        "test_activations[scaled gelu-20]",
        "test_channels_first",
        "test_several_inputs_and_outputs",
        "test_layers_that_keras_converts_on_tensorflow_alone",
        "test_preprocessing_needs_no_converter",
        "test_a_file_that_computes_something_else_is_not_kept",
    },
    "test_signal_propagation.py": {
        "test_blocks_of_plain_layers_are_where_their_ends_are_added",
        "test_custom_models_are_measured",
        "test_random_layers_draw_as_if_nothing_had_been_measured",
        "test_without_blocks_every_layer_with_a_kernel_is_measured",
    },
    "test_trained_weights.py": {
        "test_filters_of_mean_zero_give_the_same_outputs[mobile]",
        "test_filters_of_mean_zero_give_the_same_outputs[sequence]",
        "test_filters_of_mean_zero_give_the_same_outputs[subclassed]",
        "test_result_is_saved_and_folded_and_the_original_is_left",
    },
    "test_weights.py": {
        "test_deepmind_parameters_load_completely_or_not_at_all",
        "test_files_of_other_policies_load",
        "test_a_mismatch_of_one_parameter_changes_nothing",
        "test_saved_weights_come_back",
    },
}

# Names of the tests that were found, by file, also of those that are not run.
COLLECTED = collections.defaultdict(set)
