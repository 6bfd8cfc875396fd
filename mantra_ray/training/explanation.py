"""Explanations of a checkpoint's predictions: what is asked, what the memory recalls for it, what that comes to."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mantra_ray.errors import InputError
from mantra_ray.nexus.adapter import Correction, trimmed
from mantra_ray.nexus.explain import Contributions, contributions, without
from mantra_ray.nexus.reader import NOBODY
from mantra_ray.nexus.records import Records
from mantra_ray.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Query:
    """What is asked, by number, and the record of the data whose base prediction stands in (NOBODY: it has its own)."""

    regulator: int
    dose: float
    state: int
    stand_in: int
    records: Records  # of one


@dataclass(frozen=True)
class Explanation:
    """The correction of a query and its parts; C slots that were recalled."""

    query: Query
    correction: Correction
    slots: Contributions
    added: dict[str, np.ndarray]  # what each slot adds by kind (gene, program, trait), [C, ·]


def ask(checkpoint: Checkpoint, regulator: str, dose: float, state: str = "") -> Query:
    """What is asked, by name, as the model takes it.

    Its base prediction is that of the record with the same regulator and state and the nearest dose; where there is
    none, of the same regulator, then of the same state. Raises InputError for names that the data does not have.
    """
    who, where = number(checkpoint, "regulator", regulator), state_number(checkpoint, state)
    records, level = checkpoint.records, np.float32(dose)
    distance = (records["dose"] - float(level)).abs(), records["state"] != where, records["regulator"] != who
    nearest = int(np.lexsort([column.numpy() for column in distance])[0])
    one = (np.array([value]) for value in (who, level, where))
    query = asked_records(checkpoint, *one, records["base"][[nearest]], torch.tensor([nearest]))
    return Query(who, float(level), where, nearest, query)


def asked_records(
    checkpoint: Checkpoint,
    regulator: np.ndarray,
    dose: np.ndarray,
    state: np.ndarray,
    base: Tensor,
    drawn: Tensor | None = None,
) -> Records:
    """Queries [n] as the model takes them, by number, with base predictions [n, M] in units of `checkpoint.scale`.

    They are records of nobody, so that nothing is hidden from them. `drawn` [n] are the records whose buckets they
    take where buckets are drawn by record.
    """
    records, who = checkpoint.records, torch.as_tensor(regulator)
    nobody = torch.full((len(who),), NOBODY)
    place = who, checkpoint.regulator_class[who], nobody if drawn is None else drawn
    return Records(
        header=torch.as_tensor(checkpoint.model.vocabulary.header(regulator, dose, state)),
        content=torch.zeros(len(who), 0, dtype=torch.int64),
        dose=torch.as_tensor(dose, dtype=torch.float32),
        base=base,
        residual=torch.zeros_like(base),
        noise=torch.zeros(len(who)),
        bucket=torch.stack([route.bucket(*place) for route in checkpoint.model.routes], dim=1),
        state=torch.as_tensor(state),
        record=nobody,
        known=torch.isin(who, records["regulator"][records["train"]]),
    )


def training_records(checkpoint: Checkpoint, regulator: int) -> int:
    """How many records of the regulator were trained on; without any its token is unknown."""
    records = checkpoint.records
    return int(((records["regulator"] == regulator) & records["train"]).sum())


def number(checkpoint: Checkpoint, kind: str, name: str, more: Sequence[str] = ()) -> int:
    """The number of a regulator or state, `more` names counted on; InputError, with close names, if there is none."""
    names = [*checkpoint.names[kind], *more]
    if name in names:
        return names.index(name)
    lower = {own.lower(): own for own in reversed(names)}
    close = [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=3)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"names are {', '.join(names[:5])}"
    problem = f"the data has no such {kind}; {hint}" if name else f"must be given: {', '.join(names)}"
    raise InputError(checkpoint.path, f"--{kind}", name, problem)


def state_number(checkpoint: Checkpoint, state: str) -> int:
    """The number of a state, of the only one for ""; InputError if there is none, or no record in it."""
    states = checkpoint.names["state"]
    state = state or (states[0] if len(states) == 1 else "")
    where = number(checkpoint, "state", state)
    if where >= checkpoint.model.vocabulary.states:
        raise InputError(checkpoint.path, "--state", state, "no record of the data is in this state")
    return where


def explain(checkpoint: Checkpoint, query: Query, hide_own: bool = False) -> Explanation:
    """What the memory recalls for a query, slot by slot, and what that comes to in genes, programs and traits.

    A correction of programs is taken through the manifold; one of genes gives programs by the loadings. What is
    recalled for a recursive correction is given as it is: the networks make of it what they have learned to.
    """
    memories = trimmed(checkpoint.memories)
    if hide_own:
        memories = without(memories, query.regulator, query.dose, query.state)
    correction, slots = contributions(checkpoint.model, memories, query.records)
    return Explanation(query, correction, slots, consequences(checkpoint, slots.value))


def consequences(checkpoint: Checkpoint, value: Tensor) -> dict[str, np.ndarray]:
    """Changes [C, ·] of genes (if they are what is corrected), programs and traits that corrections [C, M] come to."""
    cascade, nexus, value = checkpoint.cascade, checkpoint.config.nexus, value * checkpoint.scale
    genes = {}
    if nexus.correct == "genes":
        genes, program = {"gene": value.numpy()}, value @ cascade["loadings"]
    else:
        program = value if nexus.correction == "recursive" else value @ cascade["lift"]
    return genes | {"program": program.numpy(), "trait": (program @ cascade["trait_weights"]).numpy()}
