"""Running statistics of BatchNorm; for its arithmetic see `test_layer` and `test_primitives`."""

import jax.numpy as jnp
import numpy as np

from ftnas_jax.nn.norm import EPSILON, MOMENTUM, update_running


def test_running_statistics_move_by_a_tenth():
    assert (EPSILON, MOMENTUM) == (1e-5, 0.9)
    running, batch = np.float32([[1.0, -2.0], [4.0, 0.5]]), np.float32([[3.0, 8.0], [0.0, 0.5]])
    np.testing.assert_allclose(
        update_running(jnp.asarray(running), jnp.asarray(batch)),
        [[1.2, -1.0], [3.6, 0.5]],
        rtol=1e-6,
    )
