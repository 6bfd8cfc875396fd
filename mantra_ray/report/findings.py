"""What a report tells of: a sweep's rows, configurations, arms and comparisons, read by the tables' own code."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mantra_ray.errors import InputError
from mantra_ray.files import Place
from mantra_ray.sweep.folder import sweep_folder
from mantra_ray.sweep.paired import Paired, against_default
from mantra_ray.sweep.report import chosen_by_split, read_sweep
from mantra_ray.sweep.rowfiles import DamagedFile
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import Arm, Configuration, arms_by_split, configurations
from mantra_ray.sweep.tables import compared_arms

Row = dict[str, Any]


class Listed(Store):
    """The results of a sweep's last command: rows of other trials that lie in the folder are not seen."""

    def __init__(self, folder: str | Place, listed: Iterable[str]):
        super().__init__(folder)
        self.listed = frozenset(listed)

    def read(
        self, table: str, trials: Iterable[str] | None = None, columns: list[str] | None = None, where: Any = None
    ) -> pa.Table:
        """As `Store.read`, by default of the listed trials."""
        return super().read(table, self.listed if trials is None else trials, columns, where)


@dataclass(frozen=True)
class Findings:
    """A sweep as its tables see it; `compared` are the rows that they compare, `trials` all that ended."""

    root: Place
    described: dict[str, Any]
    store: Store
    trials: list[Row]
    compared: list[Row]
    found: list[Configuration]
    chosen: dict[str, Configuration | None]  # by split
    arms: dict[str, dict[str, Arm]]  # by split and name
    paired: dict[str, dict[tuple[int, str], Paired]]  # by arm, position in `found` and split

    @property
    def splits(self) -> list[str]:
        """The splits, in the order of the trials."""
        return list(self.chosen)

    @property
    def confidence(self) -> float:
        """Coverage of the intervals."""
        return self.trials[0]["evaluation.confidence"]

    @property
    def level(self) -> str:
        """The same in words: `95 %`."""
        return f"{100 * self.confidence:g} %"

    @property
    def missing(self) -> int:
        """Trials that the sweep's last command asks for and that have not ended."""
        return len(set(self.described["trials"])) - len(self.trials)

    def ended(self, status: str) -> list[Row]:
        """Rows of the trials that ended so: done, failed or pruned."""
        return [row for row in self.trials if row["status"] == status]

    def judged(self, split: str) -> tuple[list[Row], list[Row]]:
        """Finished rows of a split: the baselines', and those of the configuration chosen there."""
        item = self.chosen[split]
        baselines = [
            r for r in self.compared if (r["kind"], r["status"], r["split.kind"]) == ("baselines", "done", split)
        ]
        return baselines, item.results[split].trials if item is not None else []

    def records(self, split: str) -> int:
        """Test records behind the arms of a split, all seeds together."""
        return max((arm.gain.n for arm in self.arms[split].values()), default=0)

    @property
    def spoken(self) -> list[str]:
        """The splits on which some configuration is not the GNN: figures of configurations leave out the others."""
        return [s for s in self.splits if any(s in i.results and not i.results[s].is_gnn for i in self.found)]

    @property
    def unspoken(self) -> str:
        """What is said of the splits that figures leave out."""
        left = [split for split in self.splits if split not in self.spoken]
        return f" Left out, since every configuration equals the GNN there: {', '.join(left)}." if left else ""

    @property
    def sample(self) -> str:
        """The test records of each split, in words."""
        return ", ".join(f"{self.records(split)} test records on {split}" for split in self.splits)


def read_findings(address: str) -> Findings:
    """Read the folder or address of a sweep.

    Raises InputError if it is no sweep's, if files of its trials are damaged or if no trial has finished.
    """
    root, _, listed = sweep_folder(address)
    check_whole(root, Store(root / "results"), listed)
    described, _, trials, compared = read_sweep(root)
    failed = sum(row["status"] == "failed" for row in trials)
    if all(row["status"] != "done" for row in trials):
        hint = f"; {failed} failed, see mantra results {address} --failed" if failed else ""
        raise InputError(root / "results", "trials", 0, f"no trial of the sweep has finished: nothing to report{hint}")
    store = Listed(root / "results", listed)
    found = configurations(store, compared)
    chosen = chosen_by_split(store, compared, found)
    return Findings(
        root=root,
        described=described,
        store=store,
        trials=trials,
        compared=compared,
        found=found,
        chosen=chosen,
        arms=arms_by_split(store, compared, chosen),
        paired={arm: against_default(store, found, arm) for arm in compared_arms(found)},
    )


def check_whole(root: Place, store: Store, listed: Iterable[str]) -> None:
    """InputError if files of the listed trials are damaged, or a file that holds the rows of many."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DamagedFile)
        whole = store.ended()
        own, compact = store.files("trials").shares(listed)
    present = set(own).union(*(mine for _, mine in compact))
    again = "give the sweep's command again, which runs their trials anew"
    if damaged := sorted(present - whole.keys()):
        raise InputError(root / "results", "trial", damaged[0], f"files of {len(damaged)} trials are damaged; {again}")
    for warning in told:
        if issubclass(warning.category, DamagedFile) and "compact-" in str(warning.message):
            raise InputError(root / "results", "file", str(warning.message), f"is damaged; {again}")
