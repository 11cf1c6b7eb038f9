"""What is known of a watched training: the part of a run's facts that only TensorFlow and Keras can tell."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any

import keras

from gradwatch.core.guard import Guard
from gradwatch.tf.variables import VariableSet

logger = logging.getLogger("gradwatch")


def of(
    guard: Guard,
    variables: VariableSet,
    optimizer: weakref.ref[Any] | None,
    run_info: Mapping[str, str],
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """Policy, detectors, optimizer and its settings, variables with shapes, strategy, precision, inputs with dtypes.

    Asked from a thread of the host, outside every graph.
    """
    found = None if optimizer is None else optimizer()
    return {
        **{key: value for key, value in run_info.items() if key not in ("run_name", "precision")},
        "policy": repr(guard.policy),
        "detectors": [repr(detector) for detector in guard.detectors],
        "on_nonfinite": guard.on_nonfinite,
        "on_explosion": guard.on_explosion,
        "precision": keras.mixed_precision.dtype_policy().name,
        "optimizer": None if found is None else type(found).__name__,
        "optimizer_settings": {} if found is None else _settings(found),
        "variables": dict(zip(variables.paths, variables.whole_shapes)),
        "sparse_variables": [path for path, sparse in zip(variables.paths, variables.sparse) if sparse],
        "inputs": dict(inputs),
    }


def _settings(optimizer: Any) -> dict[str, Any]:
    try:
        return dict(optimizer.get_config())
    except Exception as error:  # an optimizer of somebody's own may have none
        logger.debug("no settings of %s: %s", type(optimizer).__name__, error)
        return {}
