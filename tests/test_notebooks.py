"""The notebooks run on a small sweep, say what the project's own code says, and lie in git without outputs."""

import ast
import functools
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mantra_ray.errors import InputError
from mantra_ray.evaluation.statistics import nested_gain
from mantra_ray.report import geometry
from mantra_ray.report.findings import read_findings
from mantra_ray.report.slices import by_slice
from mantra_ray.sweep.paired import against_default, errors
from mantra_ray.sweep.tables import describe, span

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "analysis"
NAMES = ("compare_configurations", "cam_geometry", "rare_regulators")
MACHINE = re.compile(r"/(home|Users|root|tmp|work|mnt|opt|var|data)/|[A-Z]:\\\\")


def made():
    """The module that writes the folder of a small sweep."""
    spec = importlib.util.spec_from_file_location("made_sweep", Path(__file__).parent / "report" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(name):
    """Source of a notebook's code cells."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def execute(name, folder):
    """Run a notebook's code on a sweep's folder; returns its names and what its cells end with."""
    names, shown = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.chdir(FOLDER)
        patch.setenv("MANTRA_RUN", str(folder))
        for number, source in enumerate(code(name)):
            tree = ast.parse(source)
            assert isinstance(tree.body[-1], ast.Expr), f"{name}, code cell {number} shows nothing"
            last = ast.Expression(tree.body.pop().value)
            exec(compile(tree, f"{name}[{number}]", "exec"), names)
            shown.append(eval(compile(last, f"{name}[{number}]", "eval"), names))
    return names, shown


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of a sweep of geometry, gamma and load: the memory helps on `seen`, and is the GNN on `unseen`."""
    root = tmp_path_factory.mktemp("made")
    made().write_sweep(root)
    return root


@pytest.fixture(scope="module")
def findings(sweep):
    """What the report of that sweep tells of."""
    return read_findings(str(sweep))


@pytest.fixture(scope="module")
def run(sweep):
    """Runs a notebook on that sweep, once."""
    return functools.cache(lambda name: execute(name, sweep))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/*.ipynb")), ids=lambda path: path.stem)
def test_files_are_clean(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5) and path.stem in NAMES
    assert notebook["cells"][0]["cell_type"] == "markdown" and not MACHINE.search(text)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and "".join(cell["source"]).strip()
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))
    assert 'RUN = os.environ.get("MANTRA_RUN", "../runs/cam_geometry")' in code(path.stem)[0]


def test_configurations_are_those_of_the_tables(run, findings):
    names, shown = run("compare_configurations")
    assert [f"{row.configuration}: {row.text}" for row in names["table"].itertuples()] == [
        f"{describe(item)}: {span(result.test)}" for item in findings.found for result in item.results.values()
    ]
    chosen = names["table"].query("chosen and split == 'seen'")["number"].item()
    assert findings.found[chosen] is not None and chosen == findings.found.index(findings.chosen["seen"])
    pairs = against_default(findings.store, findings.found, "memory_on")
    seen = {describe(findings.found[i]): pair for (i, split), pair in pairs.items() if split == "seen"}
    rows = names["differences"]
    assert set(rows["split"]) == {"seen"} and len(rows) == len(seen) == 14
    for row in rows.itertuples():
        told = seen[row.label].difference
        assert (row.value, row.lower, row.upper) == pytest.approx(
            [100 * x for x in (told.value, told.lower, told.upper)]
        )
    better, worse = ((rows["finding"] == word).sum() for word in ("better", "worse"))
    assert better and worse
    assert f"{better} of 14 comparisons are better after Holm's correction, {worse} worse" in repr(shown[2])
    assert {row.finding for row in names["steps"].itertuples()} <= {"better", "worse", "undecided"}
    assert len(names["steps"]) == 2 and "On unseen the memory stays silent" in repr(shown[1])
    for part in shown:
        assert len(part._repr_html_()) > 100
    assert "data:image/png;base64," in shown[2]._repr_html_()


def test_geometry_is_that_of_the_report(run, findings):
    names, shown = run("cam_geometry")
    cells = geometry.cells(findings.found, "geometry", "seen")
    assert len(cells) == 9 and len(names["pairs"]) == 14
    best = names["best_by_cell"](findings, "geometry", "seen")
    assert {place: item.results["seen"].test for place, item in best.items()} == cells
    assert names["rows"] and "Neither" not in repr(shown[1]) and shown[1]._repr_html_().count("<img") == 1
    assert "give way to others in 9 of 9 cells" in repr(shown[3])
    # Gain rises with gamma while density falls: the sparsest of what is no worse is the chosen one itself.
    assert re.search(r"On seen, \d+ of 14 configurations are worse than aggressive, gamma 1", repr(shown[4]))


def test_regulators_add_up_to_the_whole_gain(run, findings):
    names, shown = run("rare_regulators")
    whole = 100 * findings.arms["seen"]["memory_on"].gain.value
    assert names["SPLIT"] == "seen" and names["regulators"]["share"].sum() == pytest.approx(whole)
    assert f"of the whole gain of {whole:.1f}" in repr(shown[-2])
    quarters = names["by_size"].query("arm == 'memory_on'")
    assert quarters["records"].sum() == findings.records("seen") and names["size"] == "effect"
    assert set(names["by_size"]["arm"]) == {"memory_on", "memory_shuffled", "baseline"}
    slices = names["slices"].set_index(["split", "slice", "arm"])
    rows = errors(findings.store, findings.judged("seen")[1], "memory_on", "test", ("rare", "outlier"))
    for part, (gain, regulators) in by_slice(rows, findings.trials[0]["evaluation.bootstrap"], 0.95).items():
        told = slices.loc[("seen", part, "memory_on"), ["text", "regulators", "records"]].tolist()
        assert told == [span(gain), regulators, gain.n]  # as in the report
    assert "rare: memory_on less baseline" in repr(shown[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["one seed", "one configuration", "no baselines"])
def test_runs_on_lesser_sweeps(tmp_path, name, case):
    skips = {
        "one seed": lambda trial: trial.config.seed == 1,
        "one configuration": lambda trial: False,
        "no baselines": lambda trial: trial.kind == "baselines",
    }
    arms = [{}] if case == "one configuration" else [{"nexus.regret_gamma": -2.0}, {"nexus.regret_gamma": 1.0}]
    made().write_sweep(tmp_path, arms=arms, skips=skips[case])
    _, shown = execute(name, tmp_path)
    text = "\n".join(map(repr, shown))
    assert ("One seed tells nothing of how seeds differ" in text) == (case == "one seed")
    assert "no second configuration" in text or name != "compare_configurations" or case != "one configuration"


@pytest.mark.parametrize("name", NAMES)
def test_runs_without_validation_or_says_what_it_needs(tmp_path, name):
    module = made()
    records = module.records
    module.records = lambda *args: (columns := records(*args)) | {"part": np.full(len(columns["part"]), "test")}
    module.write_sweep(tmp_path, arms=[{"nexus.regret_gamma": -2.0}, {"nexus.regret_gamma": 1.0}])
    if name == "rare_regulators":
        with pytest.raises(InputError, match="without validation records nothing is chosen"):
            execute(name, tmp_path)
    else:
        assert "*" not in repr(execute(name, tmp_path)[1][1])


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_sweep_is_one_clear_error(tmp_path, name):
    with pytest.raises(InputError, match=r"nowhere: sweep\.json: is no folder of a sweep; .* MANTRA_RUN") as found:
        execute(name, tmp_path / "nowhere")
    assert found.value.__cause__ is None and found.value.__suppress_context__


def test_a_sweep_whose_memory_failed_is_one_clear_error(tmp_path):
    made().write_sweep(tmp_path, arms=[{}], fails=lambda trial: trial.kind == "nexus")
    with pytest.raises(InputError, match="no trial of the memory finished"):
        execute("rare_regulators", tmp_path)


def test_what_an_interval_says(run):
    finding = run("cam_geometry")[0]["contrasts"].__globals__["finding"]
    assert [finding(1.0, lower, upper) for lower, upper in ((0.5, 2), (-1, 2), (np.nan, np.nan))] == [
        "helps",
        "undecided",
        "undecided",
    ]
    assert finding(-1.0, -2, -0.5) == "harms" and finding(0.0, 0, 0) == "no difference"


def test_intervals_over_records_and_seeds_are_students(run):
    names, _ = run("rare_regulators")
    saved = np.array([0.1, 0.4, 0.3, 0.2, 0.6])
    rows = {"seed": 0, "record": np.arange(5), "regulator": 7, "gnn": 1.0, "memory_on": 1 - saved}
    (row,) = names["regulator_table"](names["sweep"], pd.DataFrame(rows)).itertuples()
    test = stats.ttest_1samp(saved, 0)
    assert (row.lower, row.upper) == pytest.approx([100 * limit for limit in test.confidence_interval(0.95)])
    assert row.p == pytest.approx(test.pvalue) and row.records == 5 and row.finding == "helps"


def test_slices_are_judged_over_regulators(run):
    names, _ = run("rare_regulators")
    count = 40
    regulator, rng = np.arange(count) % 20, np.random.default_rng(0)
    columns = {"seed": 0, "record": np.arange(count), "regulator": regulator, "gnn": 1 + rng.random(count)}
    columns |= {"rare": regulator < 12, "outlier": regulator < 3}
    records = pd.DataFrame(columns).assign(memory_on=rng.random(count), baseline=3.0 + rng.random(count))
    gains = names["slice_gains"](names["sweep"], records).set_index(["slice", "arm"])
    sizes = gains.xs("memory_on", level="arm")[["regulators", "records"]]
    assert sizes.T.to_dict("list") == {"all": [20, 40], "rare": [12, 24], "others": [8, 16], "outlier": [3, 6]}
    rare = records[records["rare"]]
    judged = [rare[name].to_numpy() for name in ("memory_on", "gnn", "regulator", "seed")]
    assert gains.loc[("rare", "memory_on"), "text"] == span(nested_gain(*judged, 1000, 0.95))
    few = gains.loc[("outlier", "memory_on")]
    assert np.isnan([few["lower"], few["upper"]]).all() and few["value"] > 0  # three regulators tell nothing
    told = names["slice_differences"](names["sweep"], records).set_index("what")
    difference = told.loc["rare: memory_on less baseline"]
    assert difference["value"] == pytest.approx(100 * (rare["baseline"] - rare["memory_on"]).sum() / rare["gnn"].sum())
    assert 100 < difference["lower"] < difference["value"] < difference["upper"]
    one_failed = records.assign(baseline=records["baseline"].where(records["record"] % 2 == 0))
    less = names["slice_gains"](names["sweep"], one_failed).set_index(["slice", "arm"])
    assert less.loc[("all", "baseline"), "records"] == 20 and np.isfinite(less.loc[("all", "baseline"), "lower"])
    unknown = records.assign(rare=None, outlier=None)
    assert names["slice_gains"](names["sweep"], unknown)["slice"].unique().tolist() == ["all"]


def test_configurations_that_read_alike_have_their_number(tmp_path):
    made().write_sweep(tmp_path, arms=[{"nexus.load": 0.0}, {"nexus.load": 0.05}])  # both have the load 0.05
    for notebook in NAMES:
        names, _ = execute(notebook, tmp_path)
        if "name" in names:
            told = [names["name"](names["sweep"], item) for item in names["sweep"].found]
            assert told == ["load 0.05 (number 0)", "load 0.05 (number 1)"]


def test_curves_are_drawn_with_their_mean(run):
    names, _ = run("compare_configurations")
    rows = [
        {"configuration": "a", "split": "seen", "seed": seed, "epoch": epoch, "metric": metric, "value": value}
        for seed in range(2)
        for epoch in range(3)
        for metric, value in (("loss", 1.0 + seed), ("validation_gain", 0.1 * epoch))
    ]
    picture = names["curve_picture"](pd.DataFrame(rows), ["loss", "validation_gain", "evictions"])
    loss, gain = picture.figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[1.0] * 3, [2.0] * 3, [1.5] * 3]
    assert gain.lines[2].get_ydata().tolist() == pytest.approx([0, 10, 20]) and picture.png


def test_versions_are_those_of_the_sweeps_environment():
    def pins(path):
        lines = (line.split(";")[0].strip() for line in path.read_text().splitlines())
        return dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)

    own, other = pins(FOLDER / "requirements.txt"), pins(ROOT / "requirements.txt")
    assert {"nbconvert", "ipykernel", "jupyterlab", "pyarrow"} <= own.keys() and not {"torch", "ray"} & own.keys()
    shared = own.keys() & other.keys()
    assert len(shared) > 20 and {name: own[name] for name in shared} == {name: other[name] for name in shared}
