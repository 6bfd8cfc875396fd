"""Each section's numbers are those of the code that prints a sweep's tables."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from mantra_ray.config import ExperimentConfig
from mantra_ray.evaluation.pooled import RATES
from mantra_ray.evaluation.statistics import Interval, nested_gain
from mantra_ray.report import (
    baselines,
    conclusions,
    configurations,
    geometry,
    importance,
    knobs,
    memory,
    origin,
    roc,
    slices,
)
from mantra_ray.report.drawing import FLOOR, fit_gains, looks, panels
from mantra_ray.report.findings import read_findings
from mantra_ray.report.page import scrubbed, sheet
from mantra_ray.sweep.knobs import space_of
from mantra_ray.sweep.paired import errors
from mantra_ray.sweep.report import finding
from mantra_ray.sweep.scorecard import cell
from mantra_ray.sweep.summary import best_on_validation
from mantra_ray.sweep.tables import arm_table, compared_table, group_table, span, under_load


def texts(section):
    """The parts of a section that are HTML, as one text."""
    return "\n".join(part for part in section.parts if isinstance(part, str))


def cells(table):
    """Cells of a terminal's table, row by row."""
    return [str(cell) for row in zip(*(column.cells for column in table.columns), strict=True) for cell in row]


def shown(html):
    """Cells of the page's tables, in order."""
    return [re.sub(r"</?strong>", "", text) for text in re.findall(r"<td[^>]*>(.*?)</td>", html)]


def contains(whole, part):
    """Whether one list stands in another."""
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def test_configurations_are_the_printed_tables(findings):
    found, html = shown(texts(configurations.section(findings))), findings.found
    for loaded in (False, True):
        group = [item for item in html if under_load(item) == loaded]
        assert contains(found, cells(group_table(group, html, findings.splits)))
    for split in findings.splits:
        pairs = {key: pair for key, pair in findings.paired["memory_on"].items() if key[1] == split}
        assert pairs and contains(found, cells(compared_table(html, pairs, [split])))
    (best,) = best_on_validation(html, "seen")
    assert f"On seen validation chooses aggressive, gamma 1, load {best.mean('load'):g}" in texts(
        configurations.section(findings)
    )


def test_conclusions_are_the_printed_findings(findings):
    text = texts(conclusions.section(findings))
    for split in findings.splits:
        told = finding(split, findings.arms[split], findings.found, findings.chosen[split])
        assert told.replace("'", "&#x27;") in text
    gain = findings.arms["seen"]["memory_on"].gain
    assert f"On seen the memory helps: gain {span(gain).replace(' ', ' % ', 1)}." in text
    assert "On unseen the memory stays silent" in text
    name, difference = conclusions.against_baseline(findings, "seen")
    own, other = (findings.arms["seen"][arm].gain.value for arm in ("memory_on", name))
    assert name == "ridge" and difference.value == pytest.approx(own - other) and difference.n == 32


def test_differences_that_survive_are_those_below_alpha(findings):
    pairs = findings.paired["memory_on"]
    alive = conclusions.survivors(pairs, 0.05)
    assert alive and {key for key, _ in alive} == {key for key, pair in pairs.items() if pair.p_value < 0.05}
    sizes = [abs(pair.difference.value) for _, pair in alive]
    assert sizes == sorted(sizes, reverse=True) and not conclusions.survivors(pairs, 0.0)
    tested = sum(not pair.same for pair in pairs.values())
    assert all(pair.same for (_, split), pair in pairs.items() if split == "unseen")  # there all are the GNN
    assert f"memory_on: {len(alive)} of {tested} comparisons do" in texts(conclusions.section(findings))


def test_power_is_that_of_the_sweep(findings):
    (seen,) = conclusions.expectations(findings)  # on unseen all are the GNN
    tested = sum(not pair.same for pair in findings.paired["memory_on"].values())
    assert (seen.split, seen.seeds, seen.regulators, seen.comparisons) == ("seen", 2, 8, tested)
    assert 0 < seen.limit <= seen.detectable and seen.line() in texts(conclusions.section(findings))


def test_curves_against_gamma_hold_the_other_knobs_fixed(findings):
    (group,) = knobs.facets(findings.found, "nexus.regret_gamma").values()
    curves = knobs.curves(group, "nexus.regret_gamma", "seen")
    assert set(curves) == {"safe", "aggressive", "extreme"} and {item.values["nexus.load"] for item in group} == {0.0}
    for curve in curves.values():
        assert [value for value, _ in curve] == [-2.0, 0.0, 1.0]
    gains = [item.results["seen"].test for item in group if item.values["nexus.buckets"] == 2048]
    assert [gain for _, gain in curves["aggressive"]] == gains
    assert [part.name for part in knobs.section(findings).parts] == ["gain_gamma"]


def test_where_no_two_configurations_differ_in_gamma_alone_they_are_a_cloud(write, tmp_path):
    arms = [{"nexus.regret_gamma": gamma, "nexus.tau": tau} for gamma, tau in ((-2.0, 0.1), (0.3, 0.2), (1.0, 0.3))]
    write(tmp_path, arms=arms, splits=("seen",))
    findings = read_findings(str(tmp_path))
    assert not knobs.facets(findings.found, "nexus.regret_gamma")
    (picture,) = knobs.section(findings).parts
    assert "other knobs differ as well" in picture.caption and "n = 3 configurations" in picture.caption
    (axes,) = picture.figure.axes
    assert {line.get_linestyle() for line in axes.lines if len(line.get_xdata()) == 3} == {"None"}


def test_a_search_tells_what_it_prints(write, tmp_path, findings):
    assert configurations.search_section(findings) is None
    trials = write(tmp_path, arms=[{}, {"nexus.tau": 0.2}], splits=("seen",))
    rows = [{"configuration": {"nexus.tau": 0.2}, "gain": 0.25, "best": True}]
    log = {"search": "tpe", "rows": rows, "ended": "it repeats <itself>", "racing": [], "level": None, "confirmed": {}}
    log |= {"trials": [trial.id for trial in trials if trial.kind == "nexus"], "confidence": 0.95}
    described = {"trials": [trial.id for trial in trials], "timing": None, "search": log}
    (tmp_path / "sweep.json").write_text(json.dumps(described))
    text = texts(configurations.search_section(read_findings(str(tmp_path))))
    assert "tau 0.2" in text and "+25.0" in text and "it repeats &lt;itself&gt;" in text


def test_each_cell_of_the_map_is_the_best_on_validation(findings):
    assert geometry.map_axes(findings.found) == ("geometry", "load")
    found = geometry.cells(findings.found, "geometry", "seen")
    assert set(found) == {(g, c) for g in ("safe", "aggressive", "extreme") for c in ("full size", "0.25", "4")}
    full = [i for i in findings.found if not under_load(i) and i.values["nexus.buckets"] == 512]
    assert found["safe", "full size"] == best_on_validation(full, "seen")[0].results["seen"].test
    assert geometry.ordered(["4", "full size", "0.25", "16", "4"]) == ["full size", "0.25", "4", "16"]


def test_the_front_is_beaten_by_none(findings):
    front = memory.front(findings.found, "seen")

    def values(item):
        return item.results["seen"].validation, memory.mean(item.results["seen"].trials, memory.RATE)

    everything = [values(item) for item in findings.found]
    for item in front:
        gain, rate = values(item)
        assert not any(g >= gain and r >= rate and (g, r) != (gain, rate) for g, r in everything)
    assert [values(item)[0] for item in front] == sorted((values(item)[0] for item in front), reverse=True)
    assert span(front[0].results["seen"].test) in shown(texts(memory.cost_section(findings)))


def test_the_knob_that_decides_is_found(findings):
    found = importance.judged(findings.found, ["seen"])
    space = space_of([item.knobs for item in found], ExperimentConfig())
    assert {knob.name for knob in space} == {"nexus.buckets nexus.slots", "nexus.load", "nexus.regret_gamma"}
    gains = [importance.worth(item, ["seen"]) for item in found]
    assert gains == [item.results["seen"].validation for item in found]
    study = importance.study_of(found, space, gains)
    assert [trial.value for trial in study.trials] == gains
    shares = importance.importances(found, space, gains)
    assert next(iter(shares)) == "nexus.buckets nexus.slots" and len(shares) == 3
    assert sum(np.mean(values) for values in shares.values()) == pytest.approx(1)
    (picture,) = importance.section(findings).parts
    assert "FanovaImportanceEvaluator" in picture.caption and f"n = {len(found)}" in picture.caption


def test_slices_and_quarters_are_those_of_the_tables(findings, monkeypatch):
    monkeypatch.setattr(slices, "FEWEST", 5)
    own = findings.judged("seen")[1]
    rows = errors(findings.store, own, "memory_on", "test", ("rare", "outlier"))
    by_slice = slices.by_slice(rows, 1000, 0.95)
    sizes = {name: (regulators, gain.n) for name, (gain, regulators) in by_slice.items()}
    assert sizes == {"all": (8, 32), "rare": (5, 20), "others": (3, 12), "outlier": (3, 12)}
    told = shown(texts(slices.section(findings)))
    (rare, _), (others, _) = by_slice["rare"], by_slice["others"]
    assert contains(told, ["seen", "rare regulators", span(rare), "5", "20"]) and rare.lower < rare.value
    assert contains(told, ["seen", "all but rare", span(others), "3", "12"]) and np.isnan(others.lower)  # too few
    programs = slices.on_rare_programs(findings, own)
    assert contains(told, ["seen", "rare programs", span(programs), "", "32"]) and programs.lower < programs.value
    quarters = slices.by_size(findings.store, own)
    inside = rows["regulator"] < 5
    names = ("squared_error", "reference_error", "regulator", "seed")
    assert rare == nested_gain(*(rows[name][inside] for name in names))
    unknown = rows | {name: np.full(len(inside), None) for name in ("rare", "outlier")}
    assert list(slices.by_slice(unknown, 1000, 0.95)) == ["all"]
    assert sum(gain.n for *_, gain in quarters) == 32 and quarters[0][0] == rows["reference_error"].min()
    low, high, gain = quarters[1]
    inside = (rows["reference_error"] >= low) & (rows["reference_error"] < high)
    names = ("squared_error", "reference_error", "regulator", "seed")
    assert gain == nested_gain(*(rows[name][inside] for name in names)) and span(gain) in told


def test_rows_that_do_not_say_who_is_rare_are_told_of(tmp_path, write, findings):
    write(tmp_path, arms=[{}], without=("rare", "outlier", "training_records"))
    assert "do not say who is rare" in texts(slices.section(read_findings(str(tmp_path))))
    assert "do not say who is rare" not in texts(slices.section(findings))


def test_baselines_and_traits_are_the_printed_tables(findings):
    assert contains(shown(texts(baselines.section(findings))), cells(arm_table(findings.arms)))
    values = baselines.values_by_split(findings)
    section = baselines.trait_section(findings, values)
    assert cell(values["seen"]["memory_on", "trait_auroc"], 0.95) in shown(texts(section))
    assert baselines.trait_arms(values["seen"]) == [
        "memory_on",
        "memory_shuffled",
        "memory_off",
        "gnn",
        "zero",
        "ridge",
    ]
    assert "no other metric" in texts(baselines.metric_section(findings, values))


def test_roc_curves_are_those_of_the_scores(findings):
    rows = [row["trial"] for rows in findings.judged("seen") for row in rows]
    judged = roc.read_judged(findings.store, rows)
    assert set(judged) == {"zero", "ridge", "gnn", "memory_off", "memory_shuffled", "memory_on"}
    expected = np.mean([RATES ** (0.5 - 0.1 * seed) for seed in (0, 1)], axis=0)
    value, lower, upper = judged["memory_on"].curve
    assert value == pytest.approx(expected) and not lower.any() and (upper == 1).all()  # limits of the made rows
    assert judged["memory_on"].area[0] == pytest.approx(0.7) and judged["gnn"].area[0] == pytest.approx(0.65)
    assert roc.shown_arms(judged) == ["memory_on", "gnn", "zero"] and judged["ridge"].seeds == 2
    picture = roc.roc_picture(findings)
    curves, slopes, *_ = picture.figure.axes
    assert len(picture.figure.axes) == 4 and curves.get_title(loc="left") == "seen"
    line = next(line for line in curves.lines if line.get_label().startswith("memory_on, area 0.70 [0.00, 1.00]"))
    assert list(line.get_xdata()) == [0, *RATES, 1] and line.get_ydata()[1:-1] == pytest.approx(expected)
    assert [text.get_text() for text in slopes.get_yticklabels()] == ["memory_on", "gnn", "zero"]
    assert "seen: memory_on 0.70, gnn 0.65, zero 0.60" in picture.alt and "2 seeds at most" in picture.caption


def test_scores_of_an_earlier_version_have_no_curve(findings, monkeypatch):
    monkeypatch.setattr(roc, "CURVE", ("of_later",))
    text = texts(baselines.trait_section(findings, baselines.values_by_split(findings)))
    assert "hold no ROC curve" in text


def test_failures_and_provenance(findings):
    failed = texts(origin.failed_section(findings))
    assert (
        "2 failed: ValueError: slot [3] &amp; &lt;b&gt;more&lt;/b&gt; is empty" in failed and "&lt;here&gt;" in failed
    )
    assert all(row["trial"] in failed for row in findings.ended("failed")) and "load 4.0" in failed
    rows = shown(texts(origin.provenance_section(findings)))
    for name, value in (("commit", "c0ffee"), ("data_sha256", "d47a"), ("command", "mantra sweep x.py --seeds 2")):
        assert contains(rows, [name, value])
    assert origin.told(["a", "b", "a", None]) == "a (2); b (1)" and origin.told([None]) == ""


@given(st.text())
def test_any_text_is_escaped_in_a_table(text):
    table = Table()
    table.add_column("x")
    table.add_row(text)
    (found,) = re.findall(r"<td[^>]*>(.*?)</td>", sheet(table, text), re.DOTALL)
    assert "<" not in found and re.fullmatch(r"(?:[^&]|&(?:amp|lt|gt|quot|#x27);)*", found)


@given(st.lists(st.sampled_from(["plain", "words", "a = b", "x,y", ""]), max_size=8).map(" ".join))
def test_plain_text_is_not_scrubbed(text):
    assert scrubbed(text) == text


@given(st.integers(0, 7))
def test_categories_differ_in_more_than_colour(count):
    found = list(looks(str(i) for i in range(count)).values())
    for i, one in enumerate(found):
        assert all(one.marker != other.marker and one.color != other.color for other in found[:i])


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e4, 90), st.floats(0, 10))
def test_a_gain_axis_is_never_cut_above_the_floor(low, width):
    _, axes = panels(1, 1, 1.0)
    place = axes[0, 0]
    place.set_ylim(low, low + width + 1e-3)
    cut = fit_gains(place)
    bottom, top = place.get_ylim()
    assert top - bottom >= 2 - 1e-9 or cut
    assert cut == (bottom == FLOOR and low < FLOOR) and bottom <= max(low, FLOOR) + 1e-9


def test_an_interval_that_is_not_known_is_drawn_as_a_point():
    drawn = knobs.draw_gains
    _, axes = panels(1, 1, 1.0)
    drawn(axes[0, 0], [0.0], [Interval(0.5, float("nan"), float("inf"), 3)], looks(["a"])["a"])
    assert axes[0, 0].lines[0].get_ydata()[0] == 50.0
