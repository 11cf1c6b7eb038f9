"""tf-keras, the Keras 2 that `TF_USE_LEGACY_KERAS=1` brings: its optimizers are met at `apply_gradients`.

What arrives there is unscaled (its LossScaleOptimizer leaves that to the training step) and not yet summed over the
replicas. `tf_keras.optimizers` and `tf_keras.optimizers.legacy` are two families with one method in common.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from gradwatch.tf import compat


def roots() -> list[type]:
    """The classes at the roots of tf-keras' optimizers; none where tf-keras is not in use."""
    asked_for = os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true")
    if "tf_keras" not in sys.modules and not asked_for:
        return []
    try:
        tf_keras = importlib.import_module("tf_keras")
    except ImportError:  # without it tf.keras raises by itself
        return []
    families = (tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer)
    return [[c for c in family.__mro__ if "apply_gradients" in c.__dict__][-1] for family in families]


def is_old(optimizer: Any) -> bool:
    """Whether this is an optimizer of tf-keras."""
    return any(isinstance(optimizer, root) for root in roots())


def sums(keywords: Mapping[str, Any]) -> bool:
    """Whether `apply_gradients`, called with these keywords, sums over the replicas."""
    skipped = keywords.get("skip_gradients_aggregation", False)
    return bool(keywords.get("experimental_aggregate_gradients", True)) and not skipped


def summed_already(optimizer: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that tell `apply_gradients` not to sum."""
    if compat.is_legacy_family(optimizer):
        return {**keywords, "experimental_aggregate_gradients": False}
    return {**keywords, "skip_gradients_aggregation": True}
