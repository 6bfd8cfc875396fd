"""Records as tokens: `<REG=r> <DOSE=d> <STATE=s> | <PROG=k,SIGN,BIN> x P <ENDREC>`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

HEADER = 3  # tokens REG, DOSE, STATE; prediction sees these alone
REG, DOSE, STATE = range(HEADER)
SPECIAL = ("BOS", "EOS", "ENDREC", "PAD")


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of regulators, dose bins, states, signed program bins and the special tokens, in that order.

    Bin edges are inner edges, learned on the training fold: D - 1 of dose, BINS - 1 of |change of program|.
    """

    regulators: int
    states: int
    programs: int
    dose_edges: tuple[float, ...]
    magnitude_edges: tuple[float, ...]
    top_programs: int

    @staticmethod
    def learn(
        dose: np.ndarray,
        delta_program: np.ndarray,
        regulators: int,
        states: int,
        *,
        dose_bins: int,
        magnitude_bins: int,
        top_programs: int,
    ) -> Vocabulary:
        """Quantile bins of the training fold: dose [N] and changes of programs [N, K].

        Fewer distinct values than bins give fewer bins, so that no token is dead by construction.
        """
        return Vocabulary(
            regulators=regulators,
            states=states,
            programs=delta_program.shape[1],
            dose_edges=_inner_quantiles(dose, dose_bins),
            magnitude_edges=_inner_quantiles(np.abs(delta_program).ravel(), magnitude_bins),
            top_programs=min(top_programs, delta_program.shape[1]),
        )

    @property
    def bins(self) -> int:
        return len(self.magnitude_edges) + 1

    @property
    def first_dose(self) -> int:
        return self.regulators

    @property
    def first_state(self) -> int:
        return self.first_dose + len(self.dose_edges) + 1

    @property
    def first_program(self) -> int:
        return self.first_state + self.states

    @property
    def first_special(self) -> int:
        return self.first_program + self.programs * self.bins * 2

    @property
    def size(self) -> int:
        return self.first_special + len(SPECIAL)

    def special(self, name: str) -> int:
        """Id of BOS, EOS, ENDREC or PAD."""
        return self.first_special + SPECIAL.index(name)

    def header(self, regulator: np.ndarray, dose: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Token ids [N, 3] of what is known before a record is observed."""
        dose_bin = np.searchsorted(self.dose_edges, dose, side="right")
        return np.stack([regulator, self.first_dose + dose_bin, self.first_state + state], axis=1).astype(np.int64)

    def content(self, delta_program: np.ndarray) -> np.ndarray:
        """Token ids [N, P + 1]: the P programs of largest |change|, falling, then ENDREC; ties by program number."""
        size = np.abs(delta_program)
        top = np.argsort(-size, axis=1, kind="stable")[:, : self.top_programs]
        magnitude = np.searchsorted(self.magnitude_edges, np.take_along_axis(size, top, 1), side="right")
        negative = np.take_along_axis(delta_program, top, 1) < 0
        ids = self.first_program + (top * 2 + negative) * self.bins + magnitude
        end = np.full((len(ids), 1), self.special("ENDREC"))
        return np.concatenate([ids, end], axis=1).astype(np.int64)

    def decode_content(self, ids: np.ndarray) -> list[list[tuple[int, int, int]]]:
        """Program, sign (+1 or -1) and magnitude bin of every content token before ENDREC."""
        out = []
        for row in ids:
            code = [int(i) - self.first_program for i in row if self.first_program <= i < self.first_special]
            out.append([(c // (2 * self.bins), 1 - 2 * (c // self.bins % 2), c % self.bins) for c in code])
        return out

    def save(self, path: Path) -> None:
        """Write `vocab.json` atomically: counts by token type and the bin edges."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps({**asdict(self), "size": self.size}, indent=1))
        os.replace(partial, path)

    @staticmethod
    def load(path: Path) -> Vocabulary:
        """Read what `save` wrote."""
        fields = json.loads(path.read_text())
        fields.pop("size")
        edges = {name: tuple(fields[name]) for name in ("dose_edges", "magnitude_edges")}
        return Vocabulary(**{**fields, **edges})


def _inner_quantiles(values: np.ndarray, bins: int) -> tuple[float, ...]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return tuple(float(edge) for edge in edges if edge > values.min())
