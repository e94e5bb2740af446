"""The paper's tables as commands: whether runs can be run, what they share, and one for real."""

import csv
import dataclasses
import importlib
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import paper_full, paper_small
from experiments.paper import __main__ as paper
from experiments.paper import report
from experiments.paper.runs import Plan, random_genotype
from experiments.paper.tables import TABLES, Row, Sweep, Table
from experiments.train_configuration import network, training_config
from ftnas_jax.campaigns.points import as_models, points
from ftnas_jax.costs import costs_at
from ftnas_jax.errors import InputError
from ftnas_jax.models import by_name
from ftnas_jax.models.stacks import RandomBlocks
from ftnas_jax.space import PRIMITIVES, Architecture, Space

SCALES = {"full": paper_full, "small": paper_small}


def flags(run, folder=Path("runs")) -> dict[str, str]:
    """The arguments of a run in a folder of runs, by name."""
    found, arguments = {}, iter(run.command(folder)[2:])
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        found[name] = value if equals else next(arguments)
    return found


def config_of(run, folder=Path("runs")) -> dict:
    """The config of a training's command line."""
    module = flags(run, folder)["config"].removesuffix(".py").replace("/", ".")
    config = importlib.import_module(module).get_config()
    for name, value in flags(run, folder).items():
        if name.startswith("config."):
            field = name.removeprefix("config.")
            kind = type(_get(config, field))
            config.update_from_flattened_dict({field: kind(value)})
    return config.to_dict()


def _get(config, field):
    for part in field.split("."):
        config = config[part]
    return config


# The list of runs


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_every_run_is_one_that_its_experiment_takes(tmp_path, name, scale):
    table, plan = TABLES[name], Plan(SCALES[scale].get_config().to_dict(), tmp_path)
    for file, text in plan.genotypes(table).items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    runs, seen = plan.runs(table), set()
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        own = flags(run, tmp_path)
        if run.module == "experiments.search":
            assert own["config"] in ("configs/mibb.py", "configs/mibb_ft.py", "configs/adsaf_ft.py")
        if run.module == "experiments.train":
            config = config_of(run, tmp_path)
            settings = training_config(config)
            assert settings.epochs == plan.scale["epochs"]
            # The genotypes of searches are yet to be found.
            if "search-" not in own["config.network"]:
                assert network(config, 10) is not None
        if run.module == "experiments.evaluate":
            assert own["run"].rpartition("/")[2] in seen
            rates = [float(rate) for rate in own["rates"].split(",")]
            assert len(points(as_models(own["faults"]), rates, None, None)) == len(rates)
        seen.add(run.name)


def test_faults_of_trainings_are_those_of_the_paper(tmp_path):
    plan = Plan(paper_full.get_config().to_dict(), tmp_path)
    rows = {row.recipe: row for table in TABLES.values() for row in table.rows}
    configs = {
        recipe: training_config(config_of(plan.training(r, 0))) for recipe, r in rows.items()
    }
    assert configs["clean"].alpha_l == 0
    assert (configs["mibb"].rates.tried, configs["mibb"].alpha_l) == ((3e-4, 1e-4, 3e-5), 0.5)
    fixed = configs["mibb_3e-4"]
    assert (fixed.rates, fixed.hardware.faults[0].p_m, fixed.alpha_l) == (None, 3e-4, 0.5)
    stuck = configs["adsaf"].hardware.faults[0]
    assert (stuck.p0, stuck.p1, configs["adsaf"].alpha_l) == (0.067, 0.013, 0.7)
    for config in configs.values():
        assert (config.epochs, config.batch_size, config.learning_rate) == (100, 128, 0.1)


@pytest.mark.parametrize("name", TABLES)
def test_published_numbers_fill_the_columns(name):
    table = TABLES[name]
    columns = sum(len(sweep.shown) for sweep in table.sweeps)
    for row in table.rows:
        # Of Fig. 9 the text has the numbers of the first model alone.
        assert len(row.faulty) in (columns, len(table.sweeps and table.sweeps[0].shown))
        assert all(value is None or 10 <= value <= 100 for value in (row.clean, *row.faulty))


def test_tables_share_what_they_can(tmp_path):
    plan = Plan(paper_small.get_config().to_dict(), tmp_path)
    runs = {name: set(plan.runs(table)) for name, table in TABLES.items()}
    assert runs["1"] < runs["4"]
    assert runs["2"] < runs["5"]
    trained = {run for run in runs["fig9"] if run.module == "experiments.train"}
    assert trained < runs["5"]
    assert runs["4"] & runs["5"]  # the clean trainings
    names = {run.name for run in runs["4"] & runs["6"]}  # where one rate alone is tried
    assert names == {"search-mibb", "train-found-mibb-mibb", "eval-found-mibb-mibb-mibb"}
    full = Plan(paper_full.get_config().to_dict(), tmp_path)
    assert {run.name for run in set(full.runs(TABLES["4"])) & set(full.runs(TABLES["6"]))} == {
        "search-mibb"
    }


def test_costs_of_named_rows_are_the_papers(tmp_path):
    plan = Plan(paper_full.get_config().to_dict(), tmp_path)
    for row in TABLES["5"].rows:
        if not row.network.startswith("found"):
            costs = costs_at(by_name(plan.network(row.network), 10), (32, 32, 3))
            assert costs.flops / 1e6 == pytest.approx(row.flops, rel=2e-3)
            assert costs.parameters / 1e6 == pytest.approx(row.parameters, rel=6e-3)


def test_random_genotypes_are_of_their_space_and_stay():
    texts = [random_genotype(PRIMITIVES, number) for number in range(1, 6)]
    assert len(set(texts)) == 5
    assert texts == [random_genotype(PRIMITIVES, number) for number in range(1, 6)]
    for text in texts:
        Space().parse(text)
    assert set(random_genotype(("sep_conv_5x5",), 1).split("'")[1::2]) == {"sep_conv_5x5"}


# The table


SMALL = Table(
    "tiny",
    "A tiny table",
    (Sweep("stuck", "stuck_at:ratio=0.837", (0.04, 0.2), "sign_magnitude", "adSAF, p").at(0.2),),
    (
        Row("Linear", "tests.small_models:Linear", "adsaf", 90.8, (69.6,), 919.0, 2.71),
        Row("F-FT-Net", "found:mibb", "clean", 91.0, (10.0,)),
    ),
    "What a reader has to know.",
)


def scale(**fields) -> dict:
    config = paper_small.get_config()
    config.update(epochs=1, chips=4, images=50)
    config.data.update(name="digits", size=8)
    config.update(**fields)
    return config.to_dict()


def measured(run, folder: Path, *rows: str) -> None:
    """A campaign that has ended, with these lines of rate, accuracy, interval, clean and chips."""
    (folder / run.name).mkdir()
    lines = ["rate,accuracy,accuracy_low,accuracy_high,clean,chips", *rows, ""]
    (folder / run.name / "summary.csv").write_text("\n".join(lines))
    run.mark_done(folder)


DATA = {"sha256": "pixels", "image_shape": [32, 32, 3], "num_classes": 10}


def trained(run, folder: Path, sha256: str = "pixels", rate: float = 0.0) -> None:
    """A training that has ended."""
    (folder / run.name).mkdir()
    (folder / run.name / "data.json").write_text(json.dumps(DATA | {"sha256": sha256}))
    (folder / run.name / "metrics.jsonl").write_text(json.dumps({"train/rate": rate}) + "\n")
    run.mark_done(folder)


def test_a_table_is_run_gone_on_with_and_collected(tmp_path, capfd, monkeypatch):
    table = dataclasses.replace(SMALL, rows=SMALL.rows[:1])
    faults = {"faults": "stuck_at:p0=0.067,p1=0.013"}
    recipe = Plan._recipe
    monkeypatch.setattr(Plan, "_recipe", lambda self, name: recipe(self, name) | faults)

    assert paper.make([table], scale(), str(tmp_path), "list") == 0
    listed = capfd.readouterr().out.splitlines()
    assert [line.split()[:3] for line in listed] == [
        ["python", "-m", "experiments.train"],
        ["python", "-m", "experiments.evaluate"],
    ]
    assert paper.make([table], scale(), str(tmp_path), devices=1) == 0
    out = capfd.readouterr().out
    assert f"[1/2] {listed[0]} --devices=1" in out
    text = (tmp_path / "table-tiny.md").read_text()
    with (tmp_path / "table-tiny.csv").open() as file:
        (row,) = csv.DictReader(file)
    with (tmp_path / "eval-tests.small_models-Linear-adsaf-stuck" / "summary.csv").open() as file:
        found = {float(own["rate"]): own for own in csv.DictReader(file)}
    assert set(found) == {0.04, 0.2}
    assert float(row["estimate"]) == pytest.approx(float(found[0.2]["accuracy"]))
    assert (row["chips"], row["paper"], row["paper_clean"]) == ("4", "0.696", "0.908")
    assert f"| Linear | p=0.08 | here | {100 * float(row['clean']):.1f} |" in text
    assert "| | | paper | 90.8 | 69.6 | 919 | 2.71 |" in text
    assert "over 4 chips on 50 test images" in text
    # Once more, in a folder that moved, with data elsewhere: nothing is left to run.
    monkeypatch.setattr(paper, "_call", None)
    moved, elsewhere = tmp_path.rename(tmp_path.with_name("moved")), scale()
    elsewhere["data"]["data_dir"] = "elsewhere"
    assert paper.make([table], elsewhere, str(moved)) == 0
    assert (moved / "table-tiny.md").read_text() == text
    capfd.readouterr()
    # Chips are another number, of which none have been measured.
    assert paper.make([table], scale(chips=9), str(moved), "list") == 0
    assert [line.split()[2] for line in capfd.readouterr().out.splitlines()] == [
        "experiments.evaluate"
    ]
    assert "| Linear | p=0.08 | here | - | - |" in report.write(table, Plan(scale(chips=9), moved))


def test_another_scale_than_that_of_the_runs_is_refused(tmp_path):
    for mode in ("list", "collect"):
        assert paper.make([SMALL], scale(), str(tmp_path), mode) == 0
    assert not (tmp_path / "scale.json").exists()
    paper._keep_to(scale(), tmp_path, keep=True)
    assert paper.make([SMALL], scale(chips=9, seeds=2), str(tmp_path), "collect") == 0
    message = "has runs of another scale: epochs was 1, now 100, images was 50, now 0; name theirs"
    with pytest.raises(InputError, match=message) as told:
        paper.make([SMALL], scale(epochs=100, images=0), str(tmp_path), "collect")
    assert "\n" not in str(told.value)


NO_TRAINING = "scale: no training can be so"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("trial_epochs", 0, "scale.trial_epochs is 0; it is at least 1"),
        ("width", 0.0, "scale.width is 0.0; it is above 0"),
        ("images", -5, "scale.images is -5; it counts images, 0 for all"),
        ("calibrate", -1, "scale.calibrate is -1; it counts images, 0 for none"),
        ("norm_passes", "all", f"{NO_TRAINING}: norm_passes is 'all'; choose from clean, both"),
        (
            "fraction_lengths",
            "",
            f"{NO_TRAINING}: fraction_lengths is ''; choose from batch, clean",
        ),
        ("p_m", "3e-4,abc", "scale.p_m is '3e-4,abc': mibb: p_m is 'abc', not a number"),
        (
            "p_m",
            "1e-4,3e-4",
            f"{NO_TRAINING}: scale.p_m is (0.0001, 0.0003); rates decrease, within (0, 1]",
        ),
        ("p_m", "3e-4,1e-4", f"{NO_TRAINING}: scale.trial_epochs is 10; epochs is 1"),
        (
            "search",
            {"epochs": 0, "channels": 8, "batch_size": 64},
            "scale.search: no search can be so: epochs is 0; it is at least 1",
        ),
        (
            "found",
            "mibb",
            "scale.found is 'mibb'; it reads NAME=FILE,..., with names of adsaf_ft, mibb, mibb_ft",
        ),
        ("found", "mibb=no/file", "genotype: cannot read 'no/file': No such file or directory"),
        (
            "data",
            {"name": "digits", "data_dir": "", "cache_dir": "", "size": -1},
            f"{NO_TRAINING}: data.size is -1; it counts pixels, 0 for native",
        ),
        ("p_m", "2", "scale.p_m is '2': mibb: p_m is 2.0; a rate lies in [0, 1]"),
        ("epochs", 1.5, "epochs is 1.5; it takes a value like 100"),
    ],
)
def test_a_scale_that_no_run_can_have_is_refused(field, value, message):
    with pytest.raises(InputError) as told:
        paper._check_scale(scale() | {field: value})
    assert str(told.value) == message


def test_a_genotype_takes_the_place_of_a_search(tmp_path):
    file = tmp_path / "mine.txt"
    space = Space(nodes=3)
    file.write_text(space.format(space.first()))
    plan = Plan(scale(found=f"mibb={file}"), tmp_path)
    runs = plan.runs(SMALL)
    assert not any(run.module == "experiments.search" for run in runs)
    training = plan.training(SMALL.rows[1], 0)
    assert (training in runs, training.needs) == (True, None)
    assert config_of(training)["network"] == f"genotype:{file},channels=4"
    text = report.write(SMALL, plan)
    assert f"What another search found in place of mibb is in {file}." in text
    other = dataclasses.replace(SMALL, rows=SMALL.rows[:1])
    assert "another search" not in report.write(other, plan)
    flops = costs_at(by_name(plan.network("found:mibb"), 10), (32, 32, 3)).flops
    assert f"| F-FT-Net | clean | here | - | - | {flops / 1e6:.1f} |" in text


def test_a_row_is_of_the_genotype_that_was_trained(tmp_path):
    """Not of another that has taken its place since, in another file or the same."""
    file, other = tmp_path / "mine.txt", tmp_path / "other.txt"
    space = Space(nodes=3)
    file.write_text(space.format(space.first()))
    other.write_text(space.format(Architecture.from_array(space.random(jax.random.key(0)))))
    plan, row = Plan(scale(found=f"mibb={file}"), tmp_path), SMALL.rows[1]
    measured(plan.campaign(row, SMALL.sweeps[0], 0), tmp_path, "0.2,0.5,0.4,0.6,0.9,4")
    measured_row = "| F-FT-Net | clean | here | 90.0 | 50.0 ± 10.0 |"
    assert measured_row in report.write(SMALL, plan)
    for found in (f"mibb={other}", ""):
        changed = report.write(SMALL, Plan(scale(found=found), tmp_path))
        assert "| F-FT-Net | clean | here | - | - |" in changed
    assert measured_row in report.write(SMALL, plan)
    file.write_text(other.read_text())
    assert "| F-FT-Net | clean | here | - | - |" in report.write(SMALL, plan)


def test_trainings_on_different_data_are_not_one_table(tmp_path):
    plan = Plan(scale(seeds=2), tmp_path)
    for seed in range(2):
        trained(plan.training(SMALL.rows[0], seed), tmp_path, sha256=f"pixels {seed}")
    with pytest.raises(
        InputError, match=r"Linear-adsaf and .*-seed1 in .* on different data; coll"
    ):
        report.write(SMALL, plan)


def test_another_random_architecture_is_another_run(tmp_path, monkeypatch):
    row, plan = TABLES["6"].rows[0], Plan(scale(), tmp_path)
    trained(plan.training(row, 0), tmp_path)
    assert plan.training(row, 0).is_done(tmp_path)
    other = random_genotype(PRIMITIVES, 2)
    monkeypatch.setattr("experiments.paper.runs.random_genotype", lambda *_: other)
    assert not plan.training(row, 0).is_done(tmp_path)


@pytest.mark.parametrize(
    ("trainings", "said"),
    [
        ((0,), "1 of each network; baselines at {}; means over 4 chips on 50 test images, with "
         "95 % intervals over chips"),
        ((0, 1), "2 of each network; baselines at {}; means over 4 chips on 50 test images, with "
         "95 % intervals over trainings"),
    ],
)  # fmt: skip
def test_a_table_says_how_many_trainings_are_there(tmp_path, trainings, said):
    table = dataclasses.replace(SMALL, rows=SMALL.rows[:1])
    plan = Plan(scale(seeds=3), tmp_path)
    for seed in trainings:
        measured(plan.campaign(table.rows[0], table.sweeps[0], seed), tmp_path, "0.2,0.5,0,1,0.9,4")
    text = report.write(table, plan)
    assert said.format("0.125 of their channels, cells of 4 channels") in text
    assert f"{3 - len(trainings)} of 3 accuracies are not there yet" in text


def test_a_table_says_where_trainings_differ_in_number(tmp_path):
    plan = Plan(scale(seeds=2), tmp_path)
    for row, seeds in zip(SMALL.rows, (1, 2), strict=True):
        for seed in range(seeds):
            measured(plan.campaign(row, SMALL.sweeps[0], seed), tmp_path, "0.2,0.5,0,1,0.9,4")
    text = report.write(SMALL, plan)
    assert "1 or 2 of each network" in text
    assert "with 95 % intervals over trainings, of a single one over chips, on digits" in text
    assert "1 of 4 accuracies are not there yet" in text


def test_a_file_without_a_genotype_is_refused_before_any_run(tmp_path):
    (tmp_path / "mine.txt").write_text("normal=[], reduction=[]")
    with pytest.raises(InputError, match="normal cell: node 2 has 0 connections"):
        paper._check_scale(scale(found=f"mibb={tmp_path / 'mine.txt'}"))


def test_runs_are_the_same_in_a_folder_that_moved(tmp_path):
    plans = [Plan(scale(), folder) for folder in (Path("runs"), tmp_path)]
    runs = [[run for table in TABLES.values() for run in plan.runs(table)] for plan in plans]
    assert runs[0] == runs[1]
    assert not any("{folder}" in text for run in runs[0] for text in run.command(tmp_path))


def test_columns_of_several_sweeps_are_told_apart(tmp_path):
    head = report.write(TABLES["fig9"], Plan(scale(), tmp_path)).splitlines()[2]
    columns = [column.strip() for column in head.strip("|").split("|")]
    assert len(set(columns)) == len(columns) == 6 + 15
    assert columns[4] == "8bit-adSAF 0.04"
    assert columns[9] == "1bit-adSAF 0.02"


def test_choices_other_than_the_papers_reach_the_runs_and_are_said(tmp_path):
    fields = {"norm_passes": "both", "fraction_lengths": "clean", "calibrate": 64}
    plan = Plan(scale(**fields, recalibrate=32), tmp_path)
    config = config_of(plan.training(SMALL.rows[0], 0))
    assert {name: config.get(name) for name in fields} == fields | {"calibrate": None}
    own = flags(plan.campaign(SMALL.rows[0], SMALL.sweeps[0], 0))
    assert (own["calibrate"], own["recalibrate"]) == ("64", "32")
    said = (
        "running statistics of BatchNorm average both passes",
        "in trainings fraction lengths of faulty passes are those of clean ones",
        "in campaigns fraction lengths are frozen by 64 images",
        "every chip takes statistics of BatchNorm anew by 32 images",
    )
    assert f"Other than in the paper, {'; '.join(said)}." in report.write(SMALL, plan)


def test_what_is_not_there_yet_is_left_open(tmp_path):
    text = report.write(SMALL, Plan(scale(), tmp_path))
    assert "Other than in the paper" not in text
    assert "| F-FT-Net | clean | here | - | - | - | - |" in text
    assert "2 of 2 accuracies are not there yet" in text


def test_several_trainings_have_an_interval_over_trainings():
    rows = [
        {"accuracy": a, "accuracy_low": 0, "accuracy_high": 1, "clean": 0.9, "chips": 3}
        for a in (0.5, 0.6, 0.7)
    ]
    cell = report._cell(rows)
    # t_{2, 0.975} = 4.3027 and s = 0.1
    half = 4.302653 * 0.1 / np.sqrt(3)
    np.testing.assert_allclose(cell[:4], (0.6, 0.6 - half, 0.6 + half, 0.9), rtol=1e-6)
    assert (cell.chips, cell.trainings) == (3, 3)
    one = report._cell(rows[:1])
    assert one[:3] == (0.5, 0, 1)


def test_curves_are_drawn_of_sweeps_with_gaps(tmp_path):
    sweep = dataclasses.replace(SMALL.sweeps[0], rates=(1e-5, 1e-4, 1e-3), some=())
    table, plan = dataclasses.replace(SMALL, sweeps=(sweep,)), Plan(scale(), tmp_path)
    assert "](table-tiny.png)" not in report.write(table, plan)
    campaign = plan.campaign(SMALL.rows[0], sweep, 0)
    measured(campaign, tmp_path, "1e-5,0.8,0.7,0.9,0.9,4", "1e-3,0.5,0.4,0.6,0.9,4")
    text = report.write(table, plan)
    assert "| 90.0 | 80.0 ± 10.0 | - | 50.0 ± 10.0 |" in text
    assert "](table-tiny.png)" in text
    assert (tmp_path / "table-tiny.png").read_bytes().startswith(b"\x89PNG")


def test_the_exit_code_of_a_run_is_passed_on(tmp_path, monkeypatch):
    calls = []

    def call(command):
        calls.append(command)
        return 143

    monkeypatch.setattr(paper, "_call", call)
    assert paper.make([SMALL], scale(), str(tmp_path)) == 143
    assert len(calls) == 1
    assert not list(tmp_path.glob("*/done.json"))
    assert not (tmp_path / "table-tiny.md").exists()


def test_a_run_that_fails_stops_none_but_those_that_need_it(tmp_path, monkeypatch, capsys):
    folders = []

    def call(command):
        folders.append(command[-1].rpartition("/")[2])
        Path(command[-1]).mkdir()
        Path(command[-1], "summary.csv").touch()
        Path(command[-1], "data.json").write_text(json.dumps(DATA))
        return 1 if folders[-1] == "search-mibb" else 0

    monkeypatch.setattr(paper, "_call", call)
    assert paper.make([SMALL], scale(), str(tmp_path)) == 1
    linear = "tests.small_models-Linear-adsaf"
    assert folders == [f"train-{linear}", f"eval-{linear}-stuck", "search-mibb"]
    told = capsys.readouterr()
    assert told.out.count("left out: ") == 2
    names = "search-mibb, train-found-mibb-clean, eval-found-mibb-clean-stuck"
    assert told.err == f"failed: {names}; the same command tries them again\n"
    assert {done.parent.name for done in tmp_path.glob("*/done.json")} == set(folders[:2])
    assert "| Linear |" in (tmp_path / "table-tiny.md").read_text()


def test_only_rows_that_were_asked_for_are_run(tmp_path, capsys):
    assert paper.make([TABLES["5"]], scale(), str(tmp_path), "list", rows=["W-FTT-*-20"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("\n") == 2
    assert listed.count("train-w_ftt_net_20-adsaf") == 2
    with pytest.raises(InputError, match="--rows is 'W_FTT', and no row is; there are Linear, F-F"):
        paper.make([SMALL], scale(), str(tmp_path), "list", rows=["W_FTT"])


def test_rates_that_the_rule_kept_are_those_of_trainings_that_ended(tmp_path):
    row = Row("ResNet-18", "resnet18", "mibb", 79.2, (60.6,))
    plan = Plan(scale(epochs=2, seeds=3, p_m="3e-4,1e-4,3e-5"), tmp_path)
    assert report._trained_under(plan, row) == "p_m=?"
    for seed, rate in enumerate((1e-4, 3e-4, 3e-5)):
        trained(plan.training(row, seed), tmp_path, rate=rate)
    (tmp_path / plan.training(row, 1).name / "done.json").unlink()  # is under way
    assert report._trained_under(plan, row) == "p_m=0.0001 or 3e-05"


def test_magnitudes_of_weights_stand_beside_those_before_the_training(tmp_path, monkeypatch):
    """Of kernels that are known: 1 or 3 in the training, half of it before."""
    blocks = RandomBlocks(layers=2, channels=2)
    shapes = jax.eval_shape(blocks.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))

    def filled(leaf):
        return np.resize(np.array([-1.0, 3.0]), leaf.shape)

    variables = jax.tree.map(filled, shapes)
    network = SimpleNamespace(
        variables=variables, initial_variables=lambda: jax.tree.map(_half, variables)
    )
    plan, table = Plan(scale(), tmp_path), TABLES["weights"]
    assert "| Conv 3x3 |" not in report.write(table, plan)
    trained(plan.training(table.rows[0], 0), tmp_path)
    monkeypatch.setattr(report.trained, "load", lambda run: network)
    text = report.write(table, plan)
    pairs = 2 * 2 + 2 * 4  # of input and output channels, in both blocks
    assert f"| Conv 3x3 | {9 * pairs} | 2.0000 | 1.0000 | 1.0000, 0.5000 |" in text
    assert "| DepthwiseConv 3x3 | " in text
    assert "After 1 epochs, 4 channels" in text


def _half(leaf):
    return leaf / 2


def test_costs_are_those_of_the_images_trained_on(tmp_path):
    plan = Plan(scale(), tmp_path)
    row = Row("Linear", "tests.small_models:Linear", "adsaf")
    assert report._costs(plan, row).macs == 32 * 32 * 3 * 10
    folder = tmp_path / plan.training(row, 0).name
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps({"image_shape": [8, 8, 1], "num_classes": 7}))
    assert report._costs(plan, row).macs == 8 * 8 * 7


def test_signals_reach_the_run():
    program = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
    assert paper_call(program) == 128 + signal.SIGTERM


def paper_call(program: str) -> int:
    return paper._call([sys.executable, "-c", program])
