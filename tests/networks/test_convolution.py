import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from protojax.networks import windows
from protojax.networks.convolution import conv_general_dilated

NUMBERS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC")}


def _random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _gradients(convolve, x, w, stride, padding):
    def both(x, w):
        y, pull = jax.vjp(
            lambda x, w: convolve(x, w, (stride,) * (x.ndim - 2), padding, dimension_numbers=NUMBERS[x.ndim - 2]), x, w
        )
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))

    return jax.jit(both)(x, w)


def _assert_like_jax(x, w, stride, padding, tolerance=1e-5):
    got = _gradients(conv_general_dilated, x, w, stride, padding)
    wanted = _gradients(lax.conv_general_dilated, x, w, stride, padding)
    np.testing.assert_array_equal(got[0], wanted[0])
    for ours, theirs in zip(got[1:], wanted[1:], strict=True):
        assert ours.dtype == theirs.dtype
        scale = jnp.abs(theirs).max().astype(jnp.float32)
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=0, atol=tolerance * float(scale))


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_are_those_of_jax_for_the_convolutions_of_the_encoders(axes, kernel, stride):
    for size in (7, 8):
        x = _random(0, 6, *(size, size + 3)[:axes], 3)
        w = _random(1, *(kernel,) * axes, 3, 4)
        _assert_like_jax(x, w, stride, [(kernel // 2, kernel // 2)] * axes)


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(0, 3), (2, 0)], [(4, 4), (3, 3)]])
@pytest.mark.parametrize("stride", [1, 3])
def test_gradients_are_those_of_jax_for_any_padding(padding, stride):
    _assert_like_jax(_random(2, 4, 9, 6, 2), _random(3, 3, 4, 2, 5), stride, padding)


def test_gradients_of_a_batch_in_many_chunks(monkeypatch):
    monkeypatch.setattr(windows, "_CHUNK_BYTES", 20_000)
    x, w = _random(4, 30, 8, 8, 3), _random(5, 3, 3, 3, 4)
    assert windows._chunk(30, 4 * 64 * (9 + 12)) == 3
    _assert_like_jax(x, w, 1, "SAME")
    _assert_like_jax(x, w, 2, "SAME")


def test_gradients_in_bfloat16():
    x, w = _random(6, 4, 8, 8, 3).astype(jnp.bfloat16), _random(7, 3, 3, 3, 4).astype(jnp.bfloat16)
    _assert_like_jax(x, w, 1, "SAME", tolerance=0.02)


def test_gradients_agree_with_finite_differences():
    x, w = _random(8, 2, 5, 4, 2), _random(9, 3, 3, 2, 3)
    direction_x, direction_w, upstream = _random(10, *x.shape), _random(11, *w.shape), _random(12, 2, 5, 4, 3)

    def loss(x, w):
        y = conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS[2], precision="highest")
        return jnp.vdot(upstream, jnp.square(y))

    gradient_x, gradient_w = jax.grad(loss, (0, 1))(x, w)
    slope = jnp.vdot(gradient_x, direction_x) + jnp.vdot(gradient_w, direction_w)
    step = 1e-2
    values = [np.float64(loss(x + t * direction_x, w + t * direction_w)) for t in (-step, step)]
    np.testing.assert_allclose(slope, (values[1] - values[0]) / (2 * step), rtol=2e-3)


def test_second_order_vmap_and_loops():
    x, w = _random(13, 3, 4, 6, 6, 2), _random(14, 3, 3, 2, 3)

    def slope(convolve):
        def loss(x, w):
            return jnp.sum(jnp.sin(convolve(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS[2])))

        def penalty(x, w):
            return jnp.sum(jnp.square(jax.grad(loss, 1)(x, w))) + jnp.sum(jnp.square(jax.grad(loss)(x, w)))

        return jax.grad(penalty, 1)

    wanted = jnp.stack([slope(lax.conv_general_dilated)(part, w) for part in x])
    scale = float(jnp.abs(wanted).max())
    mine = slope(conv_general_dilated)
    for got in (jax.jit(jax.vmap(mine, (0, None)))(x, w), lax.map(lambda part: mine(part, w), x)):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("dilation", [2, 3])
@pytest.mark.parametrize("padding", [(2, 1), (0, 0), (1, 4)])
def test_gradients_are_those_of_jax_for_the_transposed_convolutions_of_the_decoders(axes, dilation, padding):
    def spread(convolve):
        return lambda *arguments, **options: convolve(*arguments, (dilation,) * axes, **options)

    x, w = _random(16, 6, *(4, 5)[:axes], 3), _random(17, *(3, 2)[:axes], 3, 4)
    got, wanted = (
        _gradients(spread(convolve), x, w, 1, [padding] * axes)
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    np.testing.assert_array_equal(got[0], wanted[0])
    for ours, theirs in zip(got[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(jnp.abs(theirs).max()))


def _assert_one_filter_a_channel_is_like_jax(x, w, stride, padding):
    more = {"dimension_numbers": NUMBERS[x.ndim - 2], "feature_group_count": x.shape[-1]}
    made = [
        jax.value_and_grad(lambda x, w, f=f: jnp.sin(f(x, w, (stride,) * (x.ndim - 2), padding, **more)).sum(), (0, 1))(
            x, w
        )
        for f in (conv_general_dilated, lax.conv_general_dilated)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, made), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(0, 3), (2, 0)]])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", [1, 2])
def test_one_filter_a_channel_is_the_convolution_of_jax(axes, stride, padding):
    padding = padding[:axes] if isinstance(padding, list) else padding
    x, w = _random(19, 3, *(9, 8)[:axes], 4), _random(20, *(5, 3)[:axes], 1, 4)
    _assert_one_filter_a_channel_is_like_jax(x, w, stride, padding)


def test_one_filter_a_channel_of_a_batch_in_many_chunks(monkeypatch):
    monkeypatch.setattr(windows, "_CHUNK_BYTES", 10_000)
    x, w = _random(21, 30, 8, 8, 4), _random(22, 3, 3, 1, 4)
    assert windows._chunk(30, 4 * 4 * 64 * 3) == 3
    _assert_one_filter_a_channel_is_like_jax(x, w, 1, "SAME")
    _assert_one_filter_a_channel_is_like_jax(x, w, 2, "SAME")


@pytest.mark.parametrize("groups", [1, 4])
def test_a_kernel_that_does_not_fit_gives_nothing_as_in_jax(groups):
    x, w = _random(25, 2, 4, 4, 4), _random(26, 5, 5, 4 // groups, 4)
    more = {"dimension_numbers": NUMBERS[2], "feature_group_count": groups}
    for f in (conv_general_dilated, lax.conv_general_dilated):
        y, gradient = jax.value_and_grad(lambda w, f=f: f(x, w, (1, 1), "VALID", **more).sum())(w)
        assert y == 0 and gradient.shape == w.shape and not gradient.any()


def test_one_filter_a_channel_has_second_derivatives():
    x, w = _random(23, 2, 6, 5, 3), _random(24, 3, 3, 1, 3)
    more = {"dimension_numbers": NUMBERS[2], "feature_group_count": 3}

    def penalty(convolve, x, w):
        def loss(x, w):
            return jnp.sin(convolve(x, w, (2, 2), "SAME", **more)).sum()

        return sum(jnp.square(part).sum() for part in jax.grad(loss, (0, 1))(x, w))

    ours, theirs = (jax.grad(penalty, (1, 2))(f, x, w) for f in (conv_general_dilated, lax.conv_general_dilated))
    for got, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_one_filter_a_channel_is_no_convolution_on_cpu_alone():
    def lowered(platform):
        more = {"dimension_numbers": NUMBERS[2], "feature_group_count": 4}
        made = jax.jit(lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", **more))
        arguments = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 1, 4))
        return made.trace(*arguments).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")

    assert (lowered("cpu"), lowered("cuda")) == (0, 1)


@pytest.mark.parametrize(
    "options",
    [{"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": 2, "strides": 3, "padding": 1}],
    ids=str,
)
def test_what_no_encoder_uses_is_left_to_jax(options):
    x = _random(15, 2, 7, 7, 4)
    plain = nn.Conv(6, (3, 3), **options)
    ours = nn.Conv(6, (3, 3), **options, conv_general_dilated=conv_general_dilated)
    variables = plain.init(jax.random.key(0), x)
    np.testing.assert_array_equal(ours.apply(variables, x), plain.apply(variables, x))
    # Forward mode is JAX's own, which shows that the derivative is too.
    jax.jvp(lambda x: ours.apply(variables, x), (x,), (x,))


def _lowered(platform):
    def loss(w, x):
        return jnp.sum(jnp.square(conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS[2])))

    gradient = jax.jit(jax.grad(loss))
    arguments = jnp.zeros((3, 3, 2, 4)), jnp.zeros((4, 8, 8, 2))
    return gradient.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def test_the_platform_of_the_lowered_program_chooses():
    cpu, cuda = _lowered("cpu"), _lowered("cuda")
    assert "dot_general" in cpu and cpu.count("stablehlo.convolution") == 1
    assert "dot_general" not in cuda and cuda.count("stablehlo.convolution") == 2


def test_a_gradient_in_a_loop_holds_only_convolutions_that_xla_runs_fast_there():
    def loss(w, x):
        y, around = x, [(1, 1), (1, 1)]
        for stride in (1, 2):
            y = conv_general_dilated(y, w, (stride, stride), around, dimension_numbers=NUMBERS[2])
        y = conv_general_dilated(y, w, (1, 1), around, (2, 2), dimension_numbers=NUMBERS[2])
        return jnp.sum(jnp.square(y))

    def descend(w, x):
        return lax.scan(lambda w, x: (w - jax.grad(loss)(w, x), None), w, x)[0]

    program = jax.jit(descend).lower(jnp.zeros((3, 3, 4, 4)), jnp.zeros((5, 8, 9, 9, 4))).compile().as_text()
    convolutions = [line for line in program.splitlines() if " convolution(" in line]
    # Three forward, and the gradients by the input of the last two; the other four are products or not needed.
    assert len(convolutions) == 5
    assert all("dim_labels=b01f_01io->b01f" in line and "rhs_reversal" not in line for line in convolutions)
