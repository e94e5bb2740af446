import json
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftnas_jax import checkpoints as checkpoints_module
from ftnas_jax.checkpoints import Checkpoints
from ftnas_jax.run import RunDir, RunError

CONFIG = {
    "search": {"epochs": 100, "rate": 1e-4},
    "data": {"name": "cifar10", "data_dir": "/a"},
    "cells": (1, 2),
}

# A job whose every step depends on the one before, so a wrong resume shows in its metrics. With a
# third argument it kills itself inside the save of step 4; `kill_at` says where.
JOB = textwrap.dedent("""
    import os, signal, sys
    import jax, jax.numpy as jnp
    from ftnas_jax import checkpoints
    from ftnas_jax.run import RunDir

    workdir, steps = sys.argv[1], int(sys.argv[2])
    kill_at = sys.argv[3] if len(sys.argv) > 3 else None

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def torn_metrics(run):
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 5, "lo')
        die()

    @jax.jit
    def advance(state):
        return {"w": jnp.sin(state["w"] * 1.7 + state["n"]), "n": state["n"] + 1}

    state = {"w": jnp.linspace(0, 1, 50_000), "n": jnp.int32(0)}
    with RunDir(workdir, {"steps": steps}, job="test") as run:
        restored = run.restore(state)
        state, step = restored or (state, 0)
        while step < steps:
            state = advance(state)
            step += 1
            run.write_metrics({"step": step, "loss": state["w"].mean()})
            run.write_timing({"step": step, "seconds": 1})
            if step == 4 and kill_at == "orbax":
                run.checkpoints._orbax.save = die
            if step == 4 and kill_at == "_checksums":
                checkpoints._checksums = die
            if step == 4 and kill_at == "_publish":
                checkpoints.Checkpoints._publish = die
            if step == 4 and kill_at == "_prune":
                checkpoints.shutil.rmtree = die
            run.save(step, state)
            print(step, flush=True)
            if step == 4 and kill_at == "metrics":
                torn_metrics(run)
""")


def start_job(workdir: Path, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", JOB, str(workdir), *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish_job(workdir: Path, *arguments) -> None:
    process = start_job(workdir, *arguments)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish_job(workdir, 8)
    return workdir


def make_state(seed: int = 0):
    """Parameters, momentum and Adam moments: the kinds of leaves that a search saves."""
    key = jax.random.key(seed)
    params = {"stem": {"kernel": jax.random.normal(key, (3, 3, 3, 8)), "bias": jnp.zeros(8)}}
    optimizer = optax.chain(optax.clip(5.0), optax.sgd(0.1, momentum=0.9))
    return {
        "params": params,
        "sgd": optimizer.init(params),
        "adam": optax.adam(1e-3).init(params),
        "odd": jnp.asarray([np.nan, np.inf, -0.0, 1e-45], jnp.float32),
        "epoch": jnp.int32(2**31 - 1 - seed),
        "seed": seed,
    }


def assert_bit_identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Checkpoints


def test_restores_what_was_saved_bit_by_bit(tmp_path):
    state = make_state(1)
    Checkpoints(tmp_path).save(7, state, extra={"place": [1, 2]})
    restored = Checkpoints(tmp_path).restore(make_state(2))
    assert restored is not None
    assert restored.step == 7
    assert restored.extra == {"place": [1, 2]}
    assert isinstance(restored.state["params"]["stem"]["bias"], jax.Array)
    assert restored.state["seed"] == 1
    assert_bit_identical(restored.state, state)


def test_shapes_are_template_enough(tmp_path):
    state = {"w": jnp.arange(6.0).reshape(2, 3)}
    Checkpoints(tmp_path).save(0, state)
    restored = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: state))
    assert restored is not None
    assert isinstance(restored.state["w"], jax.Array)
    assert_bit_identical(restored.state, state)


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, max_to_keep=2)
    assert checkpoints.restore({"n": 0}) is None
    for step in (1, 5, 9, 10):
        checkpoints.save(step, {"n": step})
    assert checkpoints.steps() == [9, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "9"]


def test_saving_a_step_again_replaces_it_and_an_earlier_one_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"n": 1})
    checkpoints.save(3, {"n": 2})
    assert checkpoints.restore({"n": 0}) == ({"n": 2}, 3, {})
    with pytest.raises(ValueError, match="step 3 is already there"):
        checkpoints.save(2, {"n": 3})


def test_the_listed_checksums_are_those_of_sha256sum(tmp_path):
    Checkpoints(tmp_path).save(3, {"n": 1})
    subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "3", check=True
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": {"w": jnp.zeros((2, 4))}}, r"a/w is float32\[2,3\] there, float32\[2,4\] here"),
        ({"a": {"w": jnp.zeros((2, 3), jnp.int32)}}, r"a/w is float32.* there, int32"),
        ({"a": {"v": jnp.zeros((2, 3))}}, r"a/v is absent there"),
        ({"a": {}}, r"a/w is float32\[2,3\] there, absent here"),
    ],
)
def test_another_state_is_refused_by_the_leaf_that_differs(tmp_path, template, message):
    Checkpoints(tmp_path).save(1, {"a": {"w": jnp.zeros((2, 3))}})
    with pytest.raises(RunError, match=message):
        Checkpoints(tmp_path).restore(template)


def truncate(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(p for p in checkpoint.rglob("*") if p.is_file())


@pytest.mark.parametrize("hurt", [truncate, flip_a_bit, Path.unlink])
def test_any_damaged_file_is_noticed_and_the_checkpoint_before_used(tmp_path, caplog, hurt):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    for path in files_of(tmp_path / "2"):
        content = path.read_bytes()
        if not content:
            continue
        hurt(path)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            restored = Checkpoints(tmp_path).restore(make_state())
        assert restored is not None
        assert restored.step == 1, path
        assert f"{tmp_path}/2 is damaged" in caplog.text
        assert path.name in caplog.text
        path.write_bytes(content)
    assert_bit_identical(Checkpoints(tmp_path).restore(make_state()).state, make_state(2))


def test_a_damaged_checkpoint_makes_way_for_the_next_save(tmp_path):
    checkpoints = Checkpoints(tmp_path, max_to_keep=2)
    for step in (1, 2, 8):
        checkpoints.save(step, {"n": step})
    (tmp_path / "8" / "SHA256SUMS").unlink()
    checkpoints = Checkpoints(tmp_path, max_to_keep=2)
    assert checkpoints.restore({"n": 0}).step == 2
    checkpoints.save(3, {"n": 3})
    assert checkpoints.steps() == [2, 3]


def test_all_damaged_is_an_error_and_deletes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"n": step})
        truncate(tmp_path / str(step) / "about.json")
    with pytest.raises(RunError, match=r"all 2 checkpoints in .* are damaged"):
        Checkpoints(tmp_path).restore({"n": 0})
    assert checkpoints.steps() == [1, 2]


def test_a_disk_that_refuses_leaves_the_earlier_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": jnp.zeros(10)})
    noise = jax.random.bits(jax.random.key(0), (500_000,))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match="cannot save checkpoint 2 in"):
            checkpoints.save(2, {"w": noise})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    checkpoints.save(2, {"w": noise})
    assert checkpoints.restore({"w": noise}).step == 2


# Kills


@pytest.mark.parametrize("where", ["orbax", "_checksums", "_publish", "_prune", "metrics"])
def test_a_kill_anywhere_in_a_save_changes_nothing_in_the_end(tmp_path, uninterrupted, where):
    workdir = tmp_path / "run"
    process = start_job(workdir, 8, where)
    process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL
    saved = 4 if where in ("_prune", "metrics") else 3
    assert Checkpoints(workdir / "checkpoints").steps()[-1] == saved
    if where != "metrics":
        assert list((workdir / "checkpoints").glob("partial.*"))
    finish_job(workdir, 8)
    for name in ("metrics.jsonl", "timing.jsonl", "config.json"):
        assert (workdir / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert not list((workdir / "checkpoints").glob("partial.*"))


def test_a_kill_at_any_time_is_resumed(tmp_path, uninterrupted):
    workdir = tmp_path / "run"
    process = start_job(workdir, 8)
    assert process.stdout is not None
    while process.stdout.readline() != "2\n":
        pass
    time.sleep(0.03)
    process.kill()
    process.communicate()
    finish_job(workdir, 8)
    name = "metrics.jsonl"
    assert (workdir / name).read_bytes() == (uninterrupted / name).read_bytes()


# The run directory


def do_some_work(workdir) -> None:
    with open_run(workdir) as run:
        run.write_metrics({"epoch": 1})


def open_run(workdir, config=CONFIG, job="search") -> RunDir:
    return RunDir(workdir, config, job=job)


def test_config_is_written_and_may_come_again(tmp_path):
    open_run(tmp_path / "a" / "b").close()
    stored = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert stored == {"job": "search", "config": {**CONFIG, "cells": [1, 2]}}
    open_run(tmp_path / "a" / "b").close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"epochs": 50, "rate": 1e-4}}, "search.epochs was 100, now 50;"),
        ({"search": {"epochs": 100}}, "search.rate was 0.0001, now not set"),
        ({"cells": (1, 3)}, r"cells was \[1, 2\], now \[1, 3\]"),
        ({"new": "x"}, 'new was not set, now "x"'),
        ({"data": {"name": "svhn", "data_dir": "/b"}}, 'data.name was "cifar10", now "svhn"; use'),
        ({f"f{i}": i for i in range(7)}, "f4 was not set, now 4, and 2 more; use another"),
    ],
)
def test_another_config_is_refused_by_the_fields_that_differ(tmp_path, change, message):
    do_some_work(tmp_path)
    with pytest.raises(RunError, match=message) as error:
        open_run(tmp_path, {**CONFIG, **change})
    assert "\n" not in str(error.value)
    open_run(tmp_path).close()  # the refusal let go of the lock


@pytest.mark.parametrize("work", ["metrics", "checkpoint"])
def test_either_kind_of_work_is_protected(tmp_path, work):
    with open_run(tmp_path) as run:
        run.write_metrics({"epoch": 1}) if work == "metrics" else run.save(1, {"n": 1})
    with pytest.raises(RunError, match=r"search\.epochs was 100, now 1"):
        open_run(tmp_path, {**CONFIG, "search": {"epochs": 1, "rate": 1e-4}})


def test_a_false_start_may_be_started_anew(tmp_path):
    with open_run(tmp_path) as run:
        run.pin("data.json", {"sha256": "a"})
    with open_run(tmp_path, {"epochs": 1}) as run:
        run.pin("data.json", {"sha256": "b"})
    assert json.loads((tmp_path / "config.json").read_text())["config"] == {"epochs": 1}


def test_other_data_are_refused(tmp_path):
    with open_run(tmp_path) as run:
        run.pin("data.json", {"sha256": "a"})
    do_some_work(tmp_path)
    with open_run(tmp_path) as run:
        run.pin("data.json", {"sha256": "a"})
        with pytest.raises(RunError, match=r'began with \{"sha256": "a"\} in data.json, now'):
            run.pin("data.json", {"sha256": "b"})


def test_what_a_run_began_without_is_refused(tmp_path):
    do_some_work(tmp_path)
    with (
        open_run(tmp_path) as run,
        pytest.raises(RunError, match=r"a version that wrote no draws\.json, .*; use another"),
    ):
        run.pin("draws.json", 2)


def test_a_damaged_json_file_is_named(tmp_path):
    with open_run(tmp_path) as run:
        assert run.read_json("rows.json") is None
        (tmp_path / "rows.json").write_text("[1, ")
        with pytest.raises(RunError, match=r"rows\.json is damaged .*; remove it"):
            run.read_json("rows.json")


def test_where_the_data_lies_may_change(tmp_path):
    do_some_work(tmp_path)
    moved = {**CONFIG, "data": {"name": "cifar10", "data_dir": "/b", "cache_dir": "/c"}}
    open_run(tmp_path, moved).close()


def test_another_job_is_refused(tmp_path):
    do_some_work(tmp_path)
    with pytest.raises(RunError, match="holds a search, not a train"):
        open_run(tmp_path, job="train")


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.tex.* is no run directory"):
        open_run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_broken_config_is_refused(tmp_path):
    do_some_work(tmp_path)
    (tmp_path / "config.json").write_text('{"job": "sea')
    with pytest.raises(RunError, match="is not a run's config"):
        open_run(tmp_path)


def test_a_config_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match="JSON cannot hold <object"):
        open_run(tmp_path, {"a": object()})


def test_a_path_through_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with pytest.raises(RunError, match=r"cannot use .*choose another directory"):
            open_run(tmp_path / place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_is_read_only(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="may write to"):
        open_run(tmp_path / "run")


def test_a_second_process_is_refused(tmp_path):
    with open_run(tmp_path), pytest.raises(RunError, match=rf"\(pid {os.getpid()}\) is working in"):
        open_run(tmp_path)
    open_run(tmp_path).close()


def test_metrics_go_back_to_the_checkpoint(tmp_path):
    with open_run(tmp_path) as run:
        run.write_metrics({"epoch": 1, "loss": np.float32(0.1), "reward": jnp.float32(2)})
        run.save(1, {"n": 1})
        before = (tmp_path / "metrics.jsonl").read_bytes()
        run.write_metrics({"epoch": 2, "loss": float("nan")})
        run.write_timing({"epoch": 2})
    assert len(rows(tmp_path / "metrics.jsonl")) == 2
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "lo')
    with open_run(tmp_path) as run:
        assert run.restore({"n": 0}) == ({"n": 1}, 1)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        assert (tmp_path / "timing.jsonl").read_bytes() == b""
        run.write_metrics({"epoch": 2})
    first, second = rows(tmp_path / "metrics.jsonl")
    assert first == {"epoch": 1, "loss": float(np.float32(0.1)), "reward": 2.0}
    assert second == {"epoch": 2}


def test_without_a_checkpoint_the_metrics_start_anew(tmp_path):
    with open_run(tmp_path) as run:
        run.write_metrics({"epoch": 1})
    with open_run(tmp_path) as run:
        assert run.restore({"n": 0}) is None
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_lost_metrics_are_told(tmp_path, caplog):
    with open_run(tmp_path) as run:
        run.write_metrics({"epoch": 1})
        run.save(1, {"n": 1})
    (tmp_path / "metrics.jsonl").unlink()
    with open_run(tmp_path) as run, caplog.at_level(logging.WARNING):
        run.restore({"n": 0})
    assert "rows were lost" in caplog.text


def test_files_are_written_whole(tmp_path, monkeypatch):
    with open_run(tmp_path) as run:
        run.write_json("result.json", {"b": np.arange(2), "a": jnp.float32(0.5), "p": Path("x")})
        assert (tmp_path / "result.json").read_text() == (
            '{\n  "a": 0.5,\n  "b": [\n    0,\n    1\n  ],\n  "p": "x"\n}\n'
        )
        run.write_text("cells/genotype.txt", "normal=[]\n")
        assert (tmp_path / "cells" / "genotype.txt").read_text() == "normal=[]\n"

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints_module.os, "replace", full)
        with pytest.raises(RunError, match=r"No space left on device; free some disk space"):
            run.write_text("cells/genotype.txt", "half")
        assert (tmp_path / "cells" / "genotype.txt").read_text() == "normal=[]\n"


def read_scalars(workdir: Path) -> list[tuple[str, int]]:
    """What TensorBoard shows: event files in order, each START hides the steps it repeats."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown: list[tuple[str, int]] = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                shown = [(tag, step) for tag, step in shown if step < event.step]
            shown += [(value.tag, event.step) for value in event.summary.value]
    return shown


def test_tensorboard_shows_each_step_once(tmp_path, monkeypatch):
    clock = iter(range(10**9, 2 * 10**9, 100))
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: float(next(clock)))
    with open_run(tmp_path) as run:
        for step in (1, 2, 3):
            run.write_scalars(step, {"loss": jnp.float32(step), "cells": "a"})
            if step == 2:
                run.save(20, {"n": step})
    with open_run(tmp_path) as run:
        run.restore({"n": 0})
        for step in (3, 4):
            run.write_scalars(step, {"loss": np.float32(step)})
    assert read_scalars(tmp_path) == [("loss", step) for step in (1, 2, 3, 4)]
