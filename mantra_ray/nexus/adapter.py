"""Nexus: header tokens and a memory to a correction of program changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import EMPTY, Candidates, Memory, Read, read, visible_slots
from mantra_ray.nexus.tokens import HEADER, REG, STATE, Vocabulary
from mantra_ray.nexus.transformer import Transformer
from mantra_ray.nexus.warming import Stream

GATE_MAX = 2.0  # above 1, since a weak dose may recall what a strong one must exceed
READ_FEATURES = 8  # scalars that the gate sees besides the hidden state


@dataclass
class Records:
    """N records as tensors. K programs; ids are positions in the data set, so that a record knows itself."""

    header: Tensor  # [N, 3] token ids
    content: Tensor  # [N, P + 1] token ids
    dose: Tensor  # [N]
    base: Tensor  # [N, K] predicted change before the memory, in units of the fold's residual scale
    residual: Tensor  # [N, K] observed minus base, same units
    noise: Tensor  # [N] variance of the residual's observation, mean over programs, same units squared
    bucket: Tensor  # [N]
    state: Tensor  # [N]
    record: Tensor  # [N]
    known: Tensor  # [N] bool, whether the regulator has training records

    def take(self, rows: Tensor | slice) -> Records:
        return Records(**{name: tensor[rows] for name, tensor in vars(self).items()})

    def __len__(self) -> int:
        return len(self.record)


class Nexus(nn.Module):
    """The memory's reader: query, gate and decoder. The memory itself is passed in, never held."""

    def __init__(self, vocabulary: Vocabulary, config: NexusConfig, buckets: int):
        super().__init__()
        self.config, self.vocabulary, self.buckets = config, vocabulary, buckets
        length = HEADER + vocabulary.top_programs + 1
        width = config.d_model
        self.transformer = Transformer(vocabulary.size, length, width, config.layers, config.heads, config.dropout)
        self.centroid = nn.Parameter(F.normalize(torch.randn(buckets, width), dim=-1))
        self.gate = nn.Sequential(nn.Linear(READ_FEATURES, 16), nn.GELU(), nn.Linear(16, 1))
        nn.init.zeros_(self.gate[2].weight)
        nn.init.zeros_(self.gate[2].bias)
        self.gate_semantic = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.gate_semantic.weight)
        # logit of trust in other tokens' records, and what the own token and then the own state add to it
        self.gate_prior = nn.Parameter(torch.zeros(3))
        # one gain a program and no bias: a full matrix overfits, and a memory that holds nothing decodes to nothing
        self.decoder = nn.Parameter(torch.ones(vocabulary.programs))
        # 0 recalls how far the base was off, 1 what was observed; the base's own noise decides between them
        self.transport = nn.Parameter(torch.zeros(()))

    def empty_memory(self) -> Memory:
        """A cleared memory for this model, on its device."""
        weight = self.centroid
        return Memory.empty(
            self.buckets,
            self.config.slots,
            self.config.d_model,
            2 * self.vocabulary.programs + 2,  # residual, base, dose, noise
            self.vocabulary.regulators,
            dtype=weight.dtype,
            device=weight.device,
        )

    def hidden(self, records: Records, known: Tensor | None = None) -> Tensor:
        """Hidden states [N, 3, D] of the headers."""
        return self.transformer(records.header, records.known if known is None else known)

    def query(self, hidden: Tensor, bucket: Tensor) -> Tensor:
        """q = normalize(alpha * h + (1 - alpha) * c), h and c unit vectors: [N, D]."""
        alpha = self.config.query_alpha
        semantic = F.normalize(hidden[:, STATE], dim=-1)
        centroid = F.normalize(self.centroid[bucket], dim=-1)
        return F.normalize(alpha * semantic + (1 - alpha) * centroid, dim=-1)

    def parts(self, found: Read, base: Tensor) -> tuple[Tensor, Tensor]:
        """What was recalled for base predictions [N, K]: the residual, and the recalled base minus the own, [N, K].

        Their sum would take the record from its base all the way to the recalled observation.
        """
        programs = self.vocabulary.programs
        filled = found.weight.sum(-1, keepdim=True)  # 0 where nothing was read, else 1
        return found.value[:, :programs], found.value[:, programs : 2 * programs] - filled * base

    def decode(self, found: Read, base: Tensor) -> Tensor:
        """Corrections [N, K] before the gate: recalled residual + transport * move, times one gain a program."""
        recalled, move = self.parts(found, base)
        return (recalled + self.transport * move) * self.decoder

    def recall(
        self, memory: Memory, records: Records, query: Tensor, hide_state: Tensor | None, hide_token: Tensor | None
    ) -> Read:
        """Read for records that never see their own slot, nor those that are hidden from them."""
        visible = visible_slots(memory, records.bucket, records.record, hide_state, hide_token)
        return read(memory, query, records.bucket, records.header[:, REG], records.state, visible, self.config.tau)

    def fuse(self, hidden: Tensor, records: Records, found: Read) -> tuple[Tensor, Tensor]:
        """Correction [N, K] = gate [N, 1] * decoded value; exactly 0 where nothing was read."""
        dose, seen_dose, noise = records.dose, found.value[:, -2], found.value[:, -1]
        count = (found.weight > 0).sum(-1)
        features = torch.stack(
            [
                found.sim_max,
                torch.log1p(found.matches.to(dose.dtype)),
                count.clamp_min(1).to(dose.dtype).reciprocal(),
                found.spread.clamp_min(1e-6).log().clamp(-6, 6) / 3,
                noise.clamp_min(1e-6).log().clamp(-6, 6) / 3,
                dose,
                seen_dose,
                found.same_state,
            ],
            dim=-1,
        )
        steps = torch.stack([torch.ones_like(dose), found.hard.to(dose.dtype), found.hard * found.same_state], dim=-1)
        # the unit hidden state enters linearly: a few records must not fit a gate of their own
        semantic = self.gate_semantic(F.normalize(hidden[:, STATE], dim=-1))
        gate = GATE_MAX * torch.sigmoid((steps @ self.gate_prior)[:, None] + self.gate(features) + semantic)
        return gate * self.decode(found, records.base), gate

    def forward(
        self,
        memory: Memory,
        records: Records,
        hide_state: Tensor | None = None,
        hide_token: Tensor | None = None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Read, Tensor]:
        """Correction [N, K], gate [N, 1], what was read and the hidden states [N, 3, D] of records."""
        hidden = self.hidden(records, known)
        found = self.recall(memory, records, self.query(hidden, records.bucket), hide_state, hide_token)
        correction, gate = self.fuse(hidden, records, found)
        return correction, gate, found, hidden

    @torch.no_grad()
    def trust_(self, memory: Memory, records: Records, lift: Tensor) -> None:
        """Start transport and the gate's priors at least squares of training residuals on what others recall.

        Transport comes from reads of the own state. The gate gets one slope each for reads of other tokens (own
        token hidden), of the own token in other states (own state hidden) and of the own state; 1/2 where there
        are no such reads.
        """
        query = self.query(self.hidden(records), records.bucket)
        cases = (
            (None, None, lambda found: found.hard & (found.same_state > 0.5)),
            (records.state, None, lambda found: found.hard),
            (None, records.header[:, REG], lambda found: ~found.hard),
        )
        slopes = []
        for hide_state, hide_token, wanted in cases:
            found = self.recall(memory, records, query, hide_state, hide_token)
            rows = wanted(found)
            recalled, move = (part[rows] @ lift for part in self.parts(found, records.base))
            residual = records.residual[rows]
            if not slopes:
                both = torch.stack([recalled.flatten(), move.flatten()], dim=1).double()
                power = both.T @ both + 1e-9 * torch.eye(2, dtype=both.dtype, device=both.device)
                slope, moved = torch.linalg.solve(power, both.T @ residual.flatten().double())
                self.transport.copy_((moved / slope.clamp_min(1e-6)).clamp(0.0, 1.0))
            seen = recalled + self.transport * move
            slopes.append(torch.nan_to_num((seen * residual).sum() / seen.square().sum(), 0.5))
        logits = torch.logit((torch.stack(slopes[::-1]) / GATE_MAX).clamp(0.01, 0.99))
        self.gate_prior.copy_(torch.diff(logits, prepend=torch.zeros_like(logits[:1])))

    def language_loss(self, records: Records) -> Tensor:
        """Mean next-token cross-entropy over header and content."""
        tokens = torch.cat([records.header, records.content], dim=1)
        hidden = self.transformer(tokens[:, :-1], records.known)
        return F.cross_entropy(self.transformer.logits(hidden).flatten(0, 1), tokens[:, 1:].flatten())

    @torch.no_grad()
    def stream(self, records: Records) -> Stream:
        """Records as the warming pass takes them: keys from the headers, values from the observed residuals."""
        hidden = self.hidden(records)
        log_p = torch.log_softmax(self.transformer.logits(hidden[:, STATE]), dim=-1)
        content = records.content[:, :-1]
        candidates = Candidates(
            bucket=records.bucket,
            key=self.query(hidden, records.bucket),
            value=torch.cat([records.residual, records.base, records.dose[:, None], records.noise[:, None]], dim=-1),
            token=records.header[:, REG],
            record=records.record,
            state=records.state,
            stamp=torch.arange(len(records), device=records.record.device),
        )
        return Stream(
            candidates,
            signal=-(log_p.exp() * log_p).sum(-1),
            surprisal=-log_p.gather(1, content).mean(-1),
            target=records.residual,
            base=records.base,
        )


def hidden_share(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`values` [N] kept for a random share of the rows and EMPTY elsewhere: what to hide from them."""
    chosen = torch.rand(len(values), generator=generator) < share
    return torch.where(chosen.to(values.device), values, EMPTY)
