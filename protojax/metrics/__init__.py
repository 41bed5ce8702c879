"""What part-based explanations are measured by: functions of arrays and part masks, for every method with parts.

They take activations, attributions, class scores and annotations as NumPy arrays and return Python numbers or NumPy
arrays; only the attack of `misalignment` calls the model itself.
"""

from protojax.metrics.compactness import Consistency, Sizes, consistency, gaussian_noise, sizes, stability
from protojax.metrics.funnybirds import (
    THRESHOLDS,
    Birds,
    FunnyBirdsScores,
    background_independence,
    funnybirds,
    minimal_sufficient_sets,
    part_importance,
)
from protojax.metrics.misalignment import Misalignment, Observed, attack, important_box, misalignment
from protojax.metrics.parts import dilated, inside, merged, patch_boxes
from protojax.metrics.purity import Purity, purity

__all__ = [
    "THRESHOLDS",
    "Birds",
    "Consistency",
    "FunnyBirdsScores",
    "Misalignment",
    "Observed",
    "Purity",
    "Sizes",
    "attack",
    "background_independence",
    "consistency",
    "dilated",
    "funnybirds",
    "gaussian_noise",
    "important_box",
    "inside",
    "merged",
    "minimal_sufficient_sets",
    "misalignment",
    "part_importance",
    "patch_boxes",
    "purity",
    "sizes",
    "stability",
]
