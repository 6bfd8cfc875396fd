"""What the notebooks look at: a sweep's Parquet tables as frames, by the code that prints the sweep's own tables.

Gains and differences are in percent of the GNN's error. `sweep` is what `load` returns.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mantra_ray.errors import InputError
from mantra_ray.evaluation.statistics import Interval, holm
from mantra_ray.report.findings import Findings, read_findings
from mantra_ray.report.geometry import place_of
from mantra_ray.sweep.frames import mean
from mantra_ray.sweep.paired import compare, errors, shared
from mantra_ray.sweep.summary import Configuration, best_on_validation
from mantra_ray.sweep.tables import describe, span

Contrast = tuple[str, str, Configuration, Configuration]  # label, split, one configuration and the other


def load(folder: str) -> Findings:
    """A sweep, from its folder or an address such as s3://bucket/runs/cam_geometry.

    Raises InputError if there is none, or if no trial of the memory finished.
    """
    try:
        sweep = read_findings(folder)
    except InputError as error:
        hint = f"{error.problem}; the environment variable MANTRA_RUN names the sweep's folder, `make sweep` makes one"
        raise InputError(error.file, error.field, error.value, hint) from None
    if not sweep.found:
        raise InputError(sweep.root / "results", "trials", 0, "no trial of the memory finished")
    return sweep


def judged_splits(sweep: Findings) -> list[str]:
    """Splits on which validation chooses a configuration, those first where some memory is not the GNN.

    Raises InputError if there is none.
    """
    found = [split for split in sweep.splits if sweep.chosen[split]]
    if not found:
        raise InputError(sweep.root / "results", "validation", 0, "without validation records nothing is chosen")
    return sorted(found, key=lambda split: split not in sweep.spoken)


def about(sweep: Findings) -> str:
    """What the sweep holds, in a sentence or two."""
    counts = {status: len(sweep.ended(status)) for status in ("done", "failed", "pruned")} | {"missing": sweep.missing}
    trials = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    seeds = len({row["seed"] for row in sweep.trials})
    few = " One seed tells nothing of how seeds differ." if seeds == 1 else ""
    return (
        f"{sweep.root.name}: {len(sweep.found)} configurations of the memory, seeds: {seeds}, splits: "
        f"{', '.join(sweep.splits)}; trials: {trials}. Level of all intervals: {sweep.level}.{few}"
    )


def interval_columns(interval: Interval) -> dict[str, float | str]:
    """Value and limits in percent, and as text."""
    value, lower, upper = (100 * limit for limit in (interval.value, interval.lower, interval.upper))
    return {"value": value, "lower": lower, "upper": upper, "text": span(interval)}


def finding(value: float, lower: float, upper: float, words: tuple[str, str] = ("helps", "harms")) -> str:
    """What an interval says: the first word above 0, the second below; an interval that spans 0 is no finding."""
    if value == 0 and not lower < upper:
        return "no difference"
    return words[0] if lower > 0 else words[1] if upper < 0 else "undecided"


def name(sweep: Findings, item: Configuration) -> str:
    """A configuration by the knobs that the sweep varies, with its number where several read alike."""
    text = describe(item)
    alike = [other for other in sweep.found if describe(other) == text]
    number = next(i for i, other in enumerate(sweep.found) if other is item)
    return text if len(alike) == 1 else f"{text} (number {number})"


def configuration_table(sweep: Findings) -> pd.DataFrame:
    """A row a configuration and split; `number` is its place in `sweep.found`, `chosen` whether it is judged there."""
    rows = []
    for number, item in enumerate(sweep.found):
        for split, result in item.results.items():
            gain = interval_columns(result.test)
            rows.append(
                {"number": number, "configuration": name(sweep, item), "split": split}
                | {"seeds": len({row["seed"] for row in result.trials})}
                | {held: mean(result.trials, held) for held in ("load", "write_density", "occupancy")}
                | {"validation": 100 * result.validation, **gain, "records": result.test.n}
                | {"finding": "equals the GNN" if result.is_gnn else finding(*(list(gain.values())[:3]))}
                | {"chosen": item is sweep.chosen[split]}
            )
    return pd.DataFrame(rows)


def contrasts(sweep: Findings, pairs: Iterable[Contrast], arm: str = "memory_on") -> pd.DataFrame:
    """Paired differences on the same test records, one less the other, a row a pair; p by Holm over the whole frame.

    Pairs without a common seed are left out.
    """
    rows = []
    for label, split, one, other in pairs:
        trials = (item.results[split].trials for item in (one, other))
        mine, theirs = shared(*(errors(sweep.store, of, arm, "test") for of in trials))
        if len(mine["seed"]) and np.array_equal(mine["record"], theirs["record"]):
            resamples = one.trials[0]["evaluation.bootstrap"]
            difference, *_, p_value = compare(mine, theirs, resamples, sweep.confidence)
            who = {"label": label, "split": split, "one": name(sweep, one), "other": name(sweep, other)}
            seeds = len(np.unique(mine["seed"]))
            rows.append(who | interval_columns(difference) | {"p": p_value, "seeds": seeds, "records": difference.n})
    return corrected(rows, ["label", "split", "one", "other", "seeds", "records"], sweep, ("better", "worse"))


def corrected(rows: list[dict], names: list[str], sweep: Findings, words: tuple[str, str]) -> pd.DataFrame:
    """Rows as a frame, p by Holm over those that differ, and what each says: undecided where p does not survive."""
    frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else [*names, "value", "lower", "upper", "text", "p"])
    differs = (frame[["value", "lower", "upper"]] != 0).any(axis=1)
    frame.loc[differs, "p"] = holm(frame.loc[differs, "p"].to_numpy(float))
    found = [finding(*limits, words) for limits in frame[["value", "lower", "upper"]].itertuples(index=False)]
    sure = [word == "no difference" or p < 1 - sweep.confidence for word, p in zip(found, frame["p"], strict=True)]
    return frame.assign(finding=np.where(sure, found, "undecided") if rows else [])


def stated(frame: pd.DataFrame, words: tuple[str, str] = ("helps", "harms")) -> pd.DataFrame:
    """The frame with a column that says what each row's interval says by itself."""
    if frame.empty:
        return frame.assign(value=[], lower=[], upper=[], finding=[])
    return frame.assign(
        finding=[finding(*limits, words) for limits in frame[["value", "lower", "upper"]].to_numpy(float)]
    )


def best_by_cell(sweep: Findings, rows: str, split: str) -> dict[tuple[str, str], Configuration]:
    """The best configuration on validation of each cell of the geometry map; `rows` is what its rows are."""
    groups: dict[tuple[str, str], list[Configuration]] = {}
    for item in sweep.found:
        if split in item.results:
            groups.setdefault(place_of(item, rows), []).append(item)
    return {place: next(iter(best_on_validation(group, split)), group[0]) for place, group in groups.items()}


def curve_table(sweep: Findings, numbers: Iterable[int]) -> pd.DataFrame:
    """The table `curves` of some configurations, with configuration and split beside it."""
    frames = []
    for number in numbers:
        for split, result in sweep.found[number].results.items():
            rows = sweep.store.read("curves", [row["trial"] for row in result.trials]).to_pandas()
            frames.append(rows.assign(number=number, configuration=name(sweep, sweep.found[number]), split=split))
    return pd.concat(frames, ignore_index=True)
