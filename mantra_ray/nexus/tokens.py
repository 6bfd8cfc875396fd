"""Records as tokens: `<REG=r> <DOSE=d> <STATE=s> | <PROG=k,SIGN,BIN> x P, <GENE=g,SIGN,BIN> x Q <ENDREC>`."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HEADER = 3  # tokens REG, DOSE, STATE; prediction sees these alone
REG, DOSE, STATE = range(HEADER)
SPECIAL = ("BOS", "EOS", "ENDREC", "PAD")


class Change(NamedTuple):
    """What a content token says: the program (PROG) or gene (GENE) of that number, its sign (+1, -1) and its bin."""

    kind: str
    index: int
    sign: int
    bin: int


@dataclass(frozen=True)
class Vocabulary:
    """Ids of regulators, dose bins, states, signed bins of programs and of genes, and special tokens, in that order.

    Bin edges are inner edges, learned on the training fold: D - 1 of dose, BINS - 1 of |change| of programs and as
    many of genes. Gene tokens exist where `top_genes` is above 0. Raises ValueError where the fields cannot be.
    """

    regulators: int
    states: int
    programs: int
    dose_edges: tuple[float, ...]
    magnitude_edges: tuple[float, ...]
    top_programs: int
    genes: int = 0
    gene_edges: tuple[float, ...] = ()
    top_genes: int = 0

    def __post_init__(self):
        limits = {
            "regulators": (1, math.inf),
            "states": (1, math.inf),
            "programs": (1, math.inf),
            "top_programs": (1, self.programs),
            "genes": (0, math.inf),
            "top_genes": (min(1, self.genes), self.genes),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} {getattr(self, name)} lies outside {low} to {high}")
        for name in ("dose_edges", "magnitude_edges", "gene_edges"):
            edges = np.asarray(getattr(self, name), float)
            if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
                raise ValueError(f"{name} {list(edges)} do not rise or are not finite")
        if self.gene_edges and not self.genes:
            raise ValueError("gene_edges are given without genes")

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
        delta_expression: np.ndarray | None = None,
        top_genes: int = 0,
    ) -> Vocabulary:
        """Quantile bins of the training fold: dose [N], changes of programs [N, K] and of genes [N, G].

        Fewer distinct values than bins give fewer bins, so that no token is dead by construction. The bins of genes
        are those of each record's `top_genes` largest |changes|: few of many are written, all from the extreme tail,
        which bins of all changes could not tell apart. Raises ValueError for gene tokens without expression.
        """
        genes, gene_edges = 0, ()
        if top_genes:
            if delta_expression is None:
                raise ValueError(f"top_genes {top_genes} needs changes of expression")
            genes = delta_expression.shape[1]
            top_genes = min(top_genes, genes)
            largest = np.partition(np.abs(delta_expression), genes - top_genes, axis=1)[:, genes - top_genes :]
            gene_edges = _inner_quantiles(largest, magnitude_bins)
        return Vocabulary(
            regulators=regulators,
            states=states,
            programs=delta_program.shape[1],
            dose_edges=_inner_quantiles(dose, dose_bins),
            magnitude_edges=_inner_quantiles(np.abs(delta_program).ravel(), magnitude_bins),
            top_programs=min(top_programs, delta_program.shape[1]),
            genes=genes,
            gene_edges=gene_edges,
            top_genes=top_genes,
        )

    @property
    def bins(self) -> int:
        return len(self.magnitude_edges) + 1

    @property
    def gene_bins(self) -> int:
        return len(self.gene_edges) + 1

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
    def first_gene(self) -> int:
        return self.first_program + self.programs * self.bins * 2

    @property
    def first_special(self) -> int:
        return self.first_gene + self.genes * self.gene_bins * 2

    @property
    def size(self) -> int:
        return self.first_special + len(SPECIAL)

    @property
    def length(self) -> int:
        """Tokens of a record: header, P programs, Q genes and ENDREC."""
        return HEADER + self.top_programs + self.top_genes + 1

    def types(self) -> list[dict[str, Any]]:
        """Token types in the order of their ids, each with its first id and its count."""
        firsts = {
            "REG": 0,
            "DOSE": self.first_dose,
            "STATE": self.first_state,
            "PROG": self.first_program,
            "GENE": self.first_gene,
            **{name: self.special(name) for name in SPECIAL},
        }
        ends = [*firsts.values(), self.size][1:]
        return [
            {"type": name, "first": first, "count": end - first}
            for (name, first), end in zip(firsts.items(), ends, strict=True)
        ]

    def special(self, name: str) -> int:
        """Id of BOS, EOS, ENDREC or PAD."""
        return self.first_special + SPECIAL.index(name)

    def header(self, regulator: np.ndarray, dose: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Token ids [N, 3] of what is known before a record is observed."""
        dose_bin = np.searchsorted(self.dose_edges, dose, side="right")
        return np.stack([regulator, self.first_dose + dose_bin, self.first_state + state], axis=1).astype(np.int64)

    def content(self, delta_program: np.ndarray, delta_expression: np.ndarray | None = None) -> np.ndarray:
        """Token ids [N, P + Q + 1]: the P programs, then the Q genes of largest |change|, then ENDREC.

        Both by falling |change|, ties by number. Raises ValueError where gene tokens lack the changes [N, G].
        """
        ids = [self.first_program + _codes(delta_program, self.top_programs, self.magnitude_edges)]
        if self.top_genes:
            if delta_expression is None or delta_expression.shape[1] != self.genes:
                raise ValueError(f"gene tokens need changes of expression of {self.genes} genes")
            ids.append(self.first_gene + _codes(delta_expression, self.top_genes, self.gene_edges))
        ids.append(np.full((len(delta_program), 1), self.special("ENDREC")))
        return np.concatenate(ids, axis=1).astype(np.int64)

    def record(
        self,
        regulator: np.ndarray,
        dose: np.ndarray,
        state: np.ndarray,
        delta_program: np.ndarray,
        delta_expression: np.ndarray | None = None,
    ) -> np.ndarray:
        """Token ids [N, length] of whole records: header and content."""
        header, content = self.header(regulator, dose, state), self.content(delta_program, delta_expression)
        return np.concatenate([header, content], axis=1)

    def stream(self, rows: np.ndarray, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Records [n, L] as one stream: BOS, the records, EOS, then PAD up to a multiple of `multiple` tokens.

        Returns: the tokens, one-dimensional, and the offset [n] of each record's first token.
        """
        count, length = rows.shape
        tokens = np.concatenate([[self.special("BOS")], rows.ravel(), [self.special("EOS")]])
        tokens = np.pad(tokens, (0, -len(tokens) % multiple), constant_values=self.special("PAD"))
        return tokens.astype(np.int64), 1 + length * np.arange(count)

    def decode_content(self, ids: np.ndarray) -> list[list[Change]]:
        """Changes of programs and genes that the content tokens of each row [N, any] tell, in their order."""
        kinds = (
            ("PROG", self.first_program, self.first_gene, self.bins),
            ("GENE", self.first_gene, self.first_special, self.gene_bins),
        )
        return [
            [
                Change(kind, (i - first) // (2 * bins), 1 - 2 * ((i - first) // bins % 2), (i - first) % bins)
                for i in row
                for kind, first, end, bins in kinds
                if first <= i < end
            ]
            for row in np.asarray(ids).tolist()
        ]

    def save(self, path: Path) -> None:
        """Write `vocab.json` atomically: token types with first ids and counts, and the fields with the bin edges."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        described = {"size": self.size, "length": self.length, "types": self.types(), **asdict(self)}
        partial.write_text(json.dumps(described, indent=1))
        os.replace(partial, path)

    @staticmethod
    def load(path: Path) -> Vocabulary:
        """Read what `save` wrote; ValueError if it is not that, or if its types and counts contradict its fields."""
        stored = json.loads(path.read_text())
        kinds = {field.name: tuple if field.name.endswith("edges") else int for field in fields(Vocabulary)}
        values = {}
        for name, kind in kinds.items():
            value = stored.get(name) if isinstance(stored, dict) else None
            value = tuple(value) if isinstance(value, list) else value
            numbers = value if kind is tuple and isinstance(value, tuple) else [value]
            if type(value) is not kind or not all(type(number) in (int, float) for number in numbers):
                raise ValueError(f"{path}: {name} {value!r} is not as wanted")
            values[name] = value
        try:
            vocabulary = Vocabulary(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if (stored.get("size"), stored.get("types")) != (vocabulary.size, vocabulary.types()):
            raise ValueError(f"{path}: types and size are not those of the other fields")
        return vocabulary


def _codes(change: np.ndarray, top: int, edges: tuple[float, ...]) -> np.ndarray:
    """(index, sign, bin) of each row's `top` largest |changes| [N, top] as one number, by falling |change|."""
    size = np.abs(change)
    index = np.argsort(-size, axis=1, kind="stable")[:, :top]
    magnitude = np.searchsorted(edges, np.take_along_axis(size, index, 1), side="right")
    negative = np.take_along_axis(change, index, 1) < 0
    return (index * 2 + negative) * (len(edges) + 1) + magnitude


def _inner_quantiles(values: np.ndarray, bins: int) -> tuple[float, ...]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return tuple(float(edge) for edge in edges if edge > values.min())
