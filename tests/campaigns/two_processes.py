"""One of the processes of a campaign: python two_processes.py PORT COUNT NUMBER FOLDER."""

import sys

import jax

port, count, number, folder = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", int(count), int(number))

import small  # noqa: E402  (JAX looks at its devices when it is imported)

from ftnas_jax.campaigns.campaign import compare  # noqa: E402

assert jax.device_count() == 2 * int(count)
report = compare(
    [small.subject("mibb:p_m=0.02")],
    small.data(),
    faults="mibb:p_m=0.02",
    rates=[0.01, 0.05],
    key=jax.random.key(3),
    chips=300,
    margin=0.02,
    batch_size=25,
    workdir=folder,
)
print(report)
