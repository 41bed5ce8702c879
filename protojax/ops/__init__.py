"""Array functions: jax in, jax out; no networks, no files, no state."""

from protojax.ops.attention import Attended, attend, dense_attend
from protojax.ops.clusters import ClusterIndex, cluster, cluster_index
from protojax.ops.codebook import (
    codebook_loss,
    kmeans_plus_plus_codes,
    orthogonal_codes,
    perplexity,
    revived,
    sampled_codes,
    usage,
)
from protojax.ops.concepts import concept_shares, most_similar, order_free_sum, presence
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
from protojax.ops.quantize import Nearest, nearest
from protojax.ops.simplex import Parts, softmax, softmax_parts, sparsemax, sparsemax_parts, sparsemax_threshold

__all__ = [
    "Attended",
    "ClusterIndex",
    "Coverage",
    "Nearest",
    "Parts",
    "accuracy",
    "attend",
    "auroc",
    "class_mass",
    "cluster",
    "cluster_index",
    "codebook_loss",
    "concept_shares",
    "coverage_curve",
    "cross_entropy",
    "dense_attend",
    "expected_calibration_error",
    "fewest_for",
    "kmeans_plus_plus_codes",
    "most_similar",
    "nearest",
    "order_free_sum",
    "orthogonal_codes",
    "perplexity",
    "presence",
    "revived",
    "sampled_codes",
    "softmax",
    "softmax_parts",
    "sparsemax",
    "sparsemax_parts",
    "sparsemax_threshold",
    "squared_euclidean",
    "top_k",
    "usage",
    "weight_entropy",
]
