"""How often and how long a search compiles, and how long its steps take, at the paper's size.

    python -m benchmarks.search_steps --faults mibb --json results/search_steps/mibb.json

Every step samples an architecture of its own, so the spread is that of the architectures, too.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.reporting import CONFIGS, spread, steps_parser, write_json
from experiments.configuration import search_config
from ftnas_jax import machine
from ftnas_jax.data import Dataset
from ftnas_jax.search import Search, SearchData

_COMPILED = "/jax/core/compile/backend_compile_duration"
_TRACED = "/jax/core/compile/jaxpr_trace_duration"


class CompileWatch:
    """Counts compilations and their seconds, as JAX reports them, from construction on."""

    def __init__(self):
        self.compilations, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_) -> None:
        self.compilations += event == _COMPILED
        self.seconds += seconds if event in (_COMPILED, _TRACED) else 0.0


def measure(name: str, channels: int, batch: int, steps: int) -> list[dict]:
    """One row for the weight step and one for the controller step."""
    search = _search(name, channels, batch)
    state = jax.block_until_ready(search.init())
    watch, rows = CompileWatch(), []
    for phase in ("train_weights", "train_controller"):
        before = (watch.compilations, watch.seconds)
        state, seconds = _time_steps(getattr(search, phase), state, steps)
        rows.append(
            {
                "workload": f"{name} {phase.removeprefix('train_')} step",
                "channels": channels,
                "batch": batch,
                "programs": watch.compilations - before[0],
                "compile_seconds": watch.seconds - before[1],
                "first_call_seconds": seconds[0],
                "step_seconds": seconds[1:],
            }
        )
    return rows


def _time_steps(call, state, steps: int):
    seconds = []
    for step in range(steps + 1):
        began = time.perf_counter()
        state = jax.block_until_ready(call(state, 0, step, step + 1))
        seconds.append(time.perf_counter() - began)
    return state, seconds


def _search(name: str, channels: int, batch: int) -> Search:
    fields = CONFIGS[name].get_config()
    fields.network.channels, fields.batch_size = channels, batch
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32 * batch, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, len(images)).astype(np.int32)
    classes = tuple(str(c) for c in range(10))
    dataset = Dataset("noise", images, labels, images, labels, classes)
    data = SearchData(*map(jnp.asarray, (images, labels, images, labels, *dataset.mean_std())))
    return Search(search_config(fields.to_dict(), dataset), data)


def _print(rows: list[dict]) -> None:
    print(machine.describe())
    print(f"{'workload':28} {'programs':>8} {'compile s':>9} {'s/step: median [min-max]':>26}  n")
    for row in rows:
        times = row["step_seconds"]
        print(
            f"{row['workload']:28} {row['programs']:8} {row['compile_seconds']:9.0f} "
            f"{spread(times, 2):>26}  {len(times)}"
        )


def main() -> None:
    """Measure, print a table, write it as JSON where asked."""
    args = steps_parser(__doc__, steps=12).parse_args()
    rows = measure(args.faults, args.channels, args.batch, args.steps)
    _print(rows)
    write_json(args.json, machine.describe(), rows)


if __name__ == "__main__":
    main()
