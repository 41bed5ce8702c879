"""The published architectures: their sizes, and what they refuse. Their numbers are compared in `test_parity.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import networks
from protojax.config import FrozenSettings
from protojax.networks.backbones import BACKBONES, MapEncoder
from protojax.networks.convnext import ConvNeXt
from protojax.networks.efficientnet_lite import EfficientNetLite, Stage
from protojax.networks.resnet50 import BottleneckResNet
from protojax.networks.vit import ViT

PARAMETERS = {
    "deit_small": 22_050_664,
    "vit_base": 86_567_656,
    "resnet50": 25_557_032,
    "convnext_tiny": 28_589_128,
    "convnext_large": 197_767_336,
    "efficientnet_lite0": 4_652_008,
}
"""As their publishers count them, with 1000 classes."""


def _shapes(name, size=224, **more):
    if "dinov2" in name or name in ("deit_small", "vit_base"):
        more |= {"grid": more.get("grid", 14)}
    module = BACKBONES[name].module(**more)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), image)


def test_the_settings_name_every_backbone():
    assert FrozenSettings.model_fields["network"].annotation.__args__ == tuple(BACKBONES)


@pytest.mark.parametrize("name", PARAMETERS)
def test_as_many_parameters_as_published(name):
    (logits, made), variables = _shapes(name, classes=1000)
    assert logits.shape == (1, 1000)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == PARAMETERS[name]
    assert made["map"].shape[1:3] == ((14, 14) if "vit" in name or "deit" in name else (7, 7))


def test_dinov2_is_trained_at_518_pixels_and_read_at_224():
    (features, made), variables = _shapes("dinov2_base_registers", grid=37)
    assert features.shape == (1, 768)
    assert made["map"].shape == (1, 16, 16, 768)
    assert made["block_11"].shape == (1, 1 + 4 + 256, 768)
    # Without the mask token, 768 numbers that only training reads.
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 86_583_552 - 768


SMALL = {
    "vit": ViT(patch=4, width=8, depth=1, heads=2, grid=2, classes=3),
    "resnet": BottleneckResNet(depths=(1, 1), filters=4, classes=3),
    "convnext": ConvNeXt(depths=(1, 1), widths=(4, 8), classes=3),
    "efficientnet": EfficientNetLite((Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 6, 8)), 4, 16, classes=3),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_classifier_reads_means_of_the_map_or_the_class_token(name):
    image = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

    @jax.jit
    def both(key):
        (logits, made), variables = SMALL[name].init_with_output(key, image)
        read = made["features"] if name == "vit" else made["map"].mean((1, 2))
        return logits, made, SMALL[name].apply(variables, read, method="classify")

    logits, made, again = both(jax.random.key(0))
    np.testing.assert_allclose(again, logits, atol=1e-6)
    assert made["map"].dtype == logits.dtype == jnp.float32


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_keeps_parameters_and_results_in_float32(name):
    module = SMALL[name].clone(dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    (logits, made), variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), image)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == made["map"].dtype == made["features"].dtype == jnp.float32
    assert made["stem"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            SMALL["vit"],
            "images of 6x8 pixels do not divide into patches of 4x4: choose an image_size of multiples of 4",
        ),
        (SMALL["convnext"], "images of 6x8 pixels leave a rest that ConvNeXt would not see"),
    ],
)
def test_pixels_that_would_be_dropped_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 6, 8, 3))))


def test_features_are_an_encoder_of_their_own():
    encoder = networks.build(FrozenSettings(network="resnet50", weights="x.safetensors"))
    assert isinstance(encoder, MapEncoder)
    maps = jnp.arange(24.0).reshape(1, 2, 3, 4)
    pooled, made = encoder.apply({}, maps, False)
    np.testing.assert_allclose(pooled, np.arange(24.0).reshape(6, 4).mean(axis=0)[None])
    assert made["map"].shape == (1, 2, 3, 4)
    pooled, made = encoder.apply({}, maps.reshape(6, 4), False)
    np.testing.assert_array_equal(pooled, maps.reshape(6, 4))
    with pytest.raises(ValueError, match=r"features are \[batch, height, width, features\] or .* got .* \(2, 2, 6\)"):
        encoder.apply({}, maps.reshape(2, 2, 6), False)
