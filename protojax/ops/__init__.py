"""Array functions: jax in, jax out; no networks, no files, no state."""

from protojax.ops.attention import Attended, attend, dense_attend
from protojax.ops.clusters import ClusterIndex, cluster, cluster_index
from protojax.ops.distance import squared_euclidean
from protojax.ops.largest import top_k
from protojax.ops.losses import cross_entropy, weight_entropy
from protojax.ops.metrics import (
    Coverage,
    accuracy,
    auroc,
    class_mass,
    coverage_curve,
    expected_calibration_error,
    fewest_for,
)
from protojax.ops.simplex import Parts, softmax, softmax_parts, sparsemax, sparsemax_parts, sparsemax_threshold

__all__ = [
    "Attended",
    "ClusterIndex",
    "Coverage",
    "Parts",
    "accuracy",
    "attend",
    "auroc",
    "class_mass",
    "cluster",
    "cluster_index",
    "coverage_curve",
    "cross_entropy",
    "dense_attend",
    "expected_calibration_error",
    "fewest_for",
    "softmax",
    "softmax_parts",
    "sparsemax",
    "sparsemax_parts",
    "sparsemax_threshold",
    "squared_euclidean",
    "top_k",
    "weight_entropy",
]
