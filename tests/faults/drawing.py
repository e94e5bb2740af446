"""Fault maps as NumPy arrays, drawn under a fresh trace, and rates to many digits."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax.faults import Place, bernoulli
from ftnas_jax.fixed_point import FixedPoint

EIGHT = FixedPoint(8)
EIGHT_SIGNED = FixedPoint(8, "sign_magnitude")
RATES = (0.0, 1e-12, 1e-8, 1e-5, 1e-4, 1e-3, 0.04, 0.4, 0.5, 0.51, 0.7, 0.99, 1 - 2**-20, 1.0)

PATHS = {"dense": 0.0, "sparse": 1.0}
every_path = pytest.mark.parametrize("path", PATHS)


def force(monkeypatch, path, chunks=None):
    """Make later traces draw failures on one path, `chunks` times for as many elements."""
    monkeypatch.setattr(bernoulli, "_SPARSE_BELOW", PATHS[path])
    if chunks is not None:
        monkeypatch.setattr(bernoulli, "_CHUNKS", chunks)


def one_program(function):
    """`jax.jit` of a function that must not be traced twice."""
    traces = []

    def traced_once(*args):
        traces.append(None)
        assert len(traces) == 1, f"{function.__name__} is traced again"
        return function(*args)

    return jax.jit(traced_once)


def sample(model, keys, shape, *, fmt=EIGHT, macs=1):
    return model.sample(keys, shape, fmt, model.exposure(Place("layer", macs)))


def many_maps(model, maps, shape, *, fmt=EIGHT, macs=1, seed=0):
    """Fault maps [maps, *shape]."""
    draw = jax.jit(lambda keys: sample(model, keys, shape, fmt=fmt, macs=macs))
    return np.asarray(draw(jax.random.split(jax.random.key(seed), maps)))


def one_map(model, size, *, fmt=EIGHT, macs=1, seed=0):
    """A fault map [size]."""
    return many_maps(model, 1, (size,), fmt=fmt, macs=macs, seed=seed)[0]


def maps_at(model, exposures, size, *, fmt=EIGHT):
    """A map [size] for each of the exposures, all in one program and with a key of its own."""
    draw = jax.jit(lambda key, known: model.sample(key[None], (size,), fmt, known)[0])
    for seed, known in enumerate(exposures):
        yield np.asarray(draw(jax.random.key(seed), jax.tree.map(jnp.asarray, known)))


def inject(model, codes, key, fmt, macs=1):
    """The codes with faults of one map."""
    return model.apply(codes, sample(model, key[None], codes.shape, fmt=fmt, macs=macs)[0], fmt)


def all_codes(fmt):
    high = 2 ** (fmt.bits - 1) - 1
    low = -high if fmt.encoding == "sign_magnitude" else -high - 1
    return np.arange(low, high + 1, dtype=np.int32)


def compounded(rate, times):
    """1 - (1 - rate)^times with 80 digits; `rate` is read exactly."""
    with decimal.localcontext() as context:
        context.prec = 80
        sound = 1 - decimal.Decimal(float(rate))
        return float(1 - sound ** decimal.Decimal(times)) if times else 0.0


def multiplied(rate, times):
    """rate · times with 80 digits, cut at 1; `rate` is read exactly."""
    with decimal.localcontext() as context:
        context.prec = 80
        return float(min(decimal.Decimal(float(rate)) * decimal.Decimal(times), 1))
