"""Convolutions and pooling against float64 loops written from the definition, gradients too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax.nn import conv, pool

CASES = [(k, stride, dilation) for k in (1, 3, 5) for stride in (1, 2) for dilation in (1, 2)]


def windows(x, k, stride, dilation, fill=0.0):
    """float64 [B, Ho, Wo, k, k, C], read off one output position at a time."""
    batch, height, width, channels = x.shape
    pad = dilation * (k - 1) // 2
    rows, cols = range(0, height, stride), range(0, width, stride)
    out = np.full((batch, len(rows), len(cols), k, k, channels), fill)
    for a, row in enumerate(rows):
        for b, col in enumerate(cols):
            for i in range(k):
                for j in range(k):
                    y, z = row + dilation * i - pad, col + dilation * j - pad
                    if 0 <= y < height and 0 <= z < width:
                        out[:, a, b, i, j] = x[:, y, z]
    return out


def window_gradient(g, shape, stride, dilation):
    """The transpose of `windows`: g [B, Ho, Wo, k, k, C] summed into an array of `shape`."""
    _, height, width, _ = shape
    k = g.shape[3]
    pad = dilation * (k - 1) // 2
    out = np.zeros(shape)
    for a, row in enumerate(range(0, height, stride)):
        for b, col in enumerate(range(0, width, stride)):
            for i in range(k):
                for j in range(k):
                    y, z = row + dilation * i - pad, col + dilation * j - pad
                    if 0 <= y < height and 0 <= z < width:
                        out[:, y, z] += g[:, a, b, i, j]
    return out


def value_and_gradients(function, g, *inputs):
    """In one jitted program, inside a loop, as the search runs it."""

    def body(carry):
        y, vjp = jax.vjp(function, *inputs)
        return (carry[0] + 1, y, vjp(jnp.asarray(g, jnp.float32)))

    start = (jnp.int32(0), *jax.tree.map(jnp.zeros_like, jax.eval_shape(body, (0,))[1:]))
    return jax.jit(lambda: jax.lax.while_loop(lambda c: c[0] < 1, body, start))()[1:]


def random(rng, *shape):
    return rng.normal(size=shape)


@pytest.mark.parametrize(("k", "stride"), [(k, s) for k in (1, 3, 5) for s in (1, 2)])
@pytest.mark.parametrize("size", [(3, 8, 6), (2, 7, 5)])
def test_dense_convolution_and_gradients(k, stride, size):
    ours = functools.partial(conv.conv2d, stride=stride)
    native = functools.partial(conv.conv2d_native, stride=stride)
    check_dense([ours, native], k, stride, size, 4, 6)


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (3, 4), (4, 8), (8, 3), (16, 16), (2, 17), (17, 2), (21, 18)]
)
def test_dense_convolution_and_gradients_of_few_channels(k, stride, inputs, outputs):
    """Up to 16 columns are computed together where there are so many, as in this width, and few
    channels.
    """
    ours = functools.partial(conv.conv2d, stride=stride)
    check_dense([ours], k, stride, (2, 12, 16), inputs, outputs)


@pytest.mark.parametrize("size", [(2, 1, 1), (1, 1, 4), (3, 2, 1), (2, 3, 2)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_convolutions_and_gradients_of_images_smaller_than_a_stride(size, stride):
    ours = functools.partial(conv.conv2d, stride=stride)
    check_dense([ours], 3, stride, size, 3, 5)
    depthwise = functools.partial(conv.depthwise_conv2d, stride=stride)
    check_depthwise([depthwise], 3, stride, 1, size)


def check_dense(forms, k, stride, size, inputs, outputs):
    rng = np.random.default_rng(k * 10 + stride)
    x, kernel = random(rng, *size, inputs), random(rng, k, k, inputs, outputs)
    win = windows(x, k, stride, 1)
    y = np.einsum("bhwijc,ijco->bhwo", win, kernel)
    g = random(rng, *y.shape)
    dx = window_gradient(np.einsum("bhwo,ijco->bhwijc", g, kernel), x.shape, stride, 1)
    dkernel = np.einsum("bhwijc,bhwo->ijco", win, g)
    args = (jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    for form in forms:
        got_y, (got_dx, got_dkernel) = value_and_gradients(form, g, *args)
        np.testing.assert_allclose(got_y, y, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(got_dx, dx, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(got_dkernel, dkernel, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("form", [conv.conv2d, lambda x, w: conv.conv2d_native(x, w, 1)])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("inputs", [20, 7])
def test_dense_convolutions_of_codes_are_exact_in_bfloat16(form, k, inputs):
    """Against integers: every product and every partial sum here has less than 24 bits."""
    rng = np.random.default_rng(k)
    x = rng.integers(-128, 128, (2, 6, 8, inputs))
    kernel = rng.integers(-128, 128, (k, k, inputs, 8))
    x[0], kernel[..., 0] = -128, -128  # the largest sums, too
    y = np.einsum("bhwijc,ijco->bhwo", windows(x, k, 1, 1), kernel)
    check_exact(form, x, kernel, y)


@pytest.mark.parametrize("form", [conv.depthwise_conv2d, conv.depthwise_conv2d_native])
def test_depthwise_convolutions_of_codes_are_exact_in_bfloat16(form):
    rng = np.random.default_rng(0)
    x, kernel = rng.integers(-128, 128, (2, 6, 5, 7)), rng.integers(-128, 128, (5, 5, 7))
    y = np.einsum("bhwijc,ijc->bhwc", windows(x, 5, 2, 2), kernel)
    form = functools.partial(form, stride=2, dilation=2)
    check_exact(form, x, kernel, y)


def check_exact(form, x, kernel, y):
    x_step, kernel_step = 2.0**-5, 2.0**-9
    args = (jnp.asarray(x * x_step, jnp.bfloat16), jnp.asarray(kernel * kernel_step, jnp.bfloat16))
    got = jax.jit(form)(*args)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(got, np.float64) / (x_step * kernel_step), y)


@pytest.mark.parametrize(("k", "stride", "dilation"), [c for c in CASES if c[0] > 1])
def test_depthwise_convolution_and_gradients(k, stride, dilation):
    forms = [
        lambda x, w: conv.depthwise_conv2d(x, w, stride=stride, dilation=dilation),
        lambda x, w: conv.depthwise_conv2d_native(x, w, stride, dilation),
    ]
    check_depthwise(forms, k, stride, dilation, (2, 8, 7))


def check_depthwise(forms, k, stride, dilation, size):
    rng = np.random.default_rng(k * 100 + stride * 10 + dilation)
    x, kernel = random(rng, *size, 5), random(rng, k, k, 5)
    win = windows(x, k, stride, dilation)
    y = np.einsum("bhwijc,ijc->bhwc", win, kernel)
    g = random(rng, *y.shape)
    dx = window_gradient(np.einsum("bhwc,ijc->bhwijc", g, kernel), x.shape, stride, dilation)
    dkernel = np.einsum("bhwijc,bhwc->ijc", win, g)
    args = (jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    for form in forms:
        got_y, (got_dx, got_dkernel) = value_and_gradients(form, g, *args)
        np.testing.assert_allclose(got_y, y, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(got_dx, dx, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(got_dkernel, dkernel, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_max_pool_sends_the_gradient_to_the_first_of_equal_neighbours(stride, size):
    rng = np.random.default_rng(stride)
    x = rng.integers(-2, 3, size=(2, *size, 3)).astype(np.float64)  # many ties
    win = windows(x, 3, stride, 1, fill=-np.inf)
    flat = win.reshape(*win.shape[:3], 9, 3)
    y = flat.max(axis=3)
    g = random(rng, *y.shape)
    first = np.arange(9)[:, None] == flat.argmax(axis=3)[..., None, :]
    dx = window_gradient((first * g[..., None, :]).reshape(win.shape), x.shape, stride, 1)
    got_y, (got_dx,) = value_and_gradients(
        lambda x: pool.max_pool(x, stride), g, jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_array_equal(got_y, y)
    np.testing.assert_allclose(got_dx, dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_avg_pool_leaves_padding_out_of_the_mean(stride, size):
    rng = np.random.default_rng(stride)
    x = random(rng, 2, *size, 3)
    win = windows(x, 3, stride, 1, fill=np.nan)
    y = np.nanmean(win, axis=(3, 4))
    g = random(rng, *y.shape)
    inside = ~np.isnan(win)
    share = inside / inside.sum(axis=(3, 4), keepdims=True) * g[:, :, :, None, None]
    dx = window_gradient(share, x.shape, stride, 1)
    got_y, (got_dx,) = value_and_gradients(
        lambda x: pool.avg_pool(x, stride), g, jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_allclose(got_y, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got_dx, dx, rtol=1e-5, atol=1e-6)
