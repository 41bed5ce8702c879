import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.networks import Autoencoder

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (7, 9, 2)])
@pytest.mark.parametrize("strides", [(2, 2, 2, 2), (2, 2, 2, 1)])
def test_the_decoder_returns_to_the_shape_of_the_image(shape, strides):
    network = Autoencoder((3, 4, 5, 10), strides)
    images = jnp.zeros((2, *shape))
    latent, variables = network.init_with_output(jax.random.key(0), images)
    assert latent.shape[1:] == network.latent_shape(shape)
    assert network.apply(variables, latent, shape).shape == images.shape
    kernels = [x for x in jax.tree.leaves(variables) if x.ndim == 4]
    assert np.std(np.concatenate([np.ravel(k) for k in kernels])) == pytest.approx(0.01, rel=0.1)
    if shape[0] == 28:
        assert latent.shape[1:] == ((2, 2, 10) if strides[-1] == 2 else (4, 4, 10))
    with pytest.raises(ValueError, match="a latent map of images"):
        network.apply(variables, latent[:, :, :, :3], shape)


@pytest.mark.parametrize("size", [7, 8, 28])
def test_decoding_is_aligned_with_encoding(size):
    """The transposed convolution is the adjoint of the convolution with mirrored filters."""
    network = Autoencoder((1,), (2,))
    image = jnp.asarray(RNG.normal(size=(1, size, size, 1)), jnp.float32)
    variables = network.init(jax.random.key(0), image)
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 1, 1)), jnp.float32)
    variables["params"]["encode_1"]["kernel"] = kernel
    variables["params"]["decode_1"]["kernel"] = kernel[::-1, ::-1]
    # The bias keeps the ReLU from acting, and drops out of the derivative.
    variables["params"]["encode_1"]["bias"] = jnp.full(1, 1e3)
    latent, pull = jax.vjp(lambda x: network.apply(variables, x), image)
    y = jnp.asarray(RNG.normal(size=latent.shape), jnp.float32)
    np.testing.assert_allclose(network.apply(variables, y, (size, size, 1)), pull(y)[0], atol=1e-4)


@pytest.mark.parametrize("shape, stride", [((7, 8, 2), 2), ((5, 9, 1), 3), ((6, 6, 1), 1)])
def test_decoding_is_a_transposed_convolution(shape, stride):
    network = Autoencoder((4,), (stride,))
    latent = jnp.asarray(RNG.normal(size=(3, *network.latent_shape(shape))), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 4, shape[2])), jnp.float32)
    variables = {"params": {"decode_1": {"kernel": kernel, "bias": jnp.zeros(shape[2])}}}
    # SAME of the convolution cuts what reaches over the image: a pixel more after it than before.
    whole = jax.lax.conv_transpose(latent, kernel, (stride, stride), [(2, 2 + stride), (2, 2 + stride)])
    befores = [max((n - 1) * stride + 3 - size, 0) // 2 for n, size in zip(latent.shape[1:3], shape[:2], strict=True)]
    (top, left), (height, width, _) = befores, shape
    expected = whole[:, top : top + height, left : left + width]
    np.testing.assert_allclose(network.apply(variables, latent, shape), expected, atol=1e-5)


@pytest.mark.parametrize("strides", [(2, 2, 2, 2), (2, 2, 2, 1)])
def test_footprints_are_where_a_token_looks(strides):
    network = Autoencoder((2, 2, 2, 2), strides, "he")
    shape = (28, 28, 1)
    image = jnp.asarray(RNG.uniform(0, 1, (1, *shape)), jnp.float32)
    variables = network.init(jax.random.key(0), image)
    # Without negative weights every pixel that a token reads has an influence.
    variables = jax.tree.map(lambda x: jnp.abs(x) + 0.01, variables)
    footprints = network.footprints(shape)
    np.testing.assert_allclose(footprints.sum(axis=(1, 2)), 1)
    influence = jax.jacobian(lambda x: network.apply(variables, x).sum(axis=-1).ravel())(image)[:, 0, :, :, 0]
    np.testing.assert_array_equal(footprints > 0, np.asarray(influence) > 0)
