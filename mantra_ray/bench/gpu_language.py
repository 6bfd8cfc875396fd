"""The transformer and its training: headers, the head without its logits, Mode B, and the stream of records.

Models, records and memories are the project's own, of random weights and numbers; the vocabulary is made here.
Operations are counted as multiplications and additions of the products that cannot be left out, twice more for the
gradients of a step; softmax, norms, reading the memory and the optimizer's work are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mantra_ray.bench.made import PROGRAMS, QUICK, Size, make_model, make_records
from mantra_ray.bench.measured import Card, Row, deviation, peak_bytes, seconds
from mantra_ray.nexus import head
from mantra_ray.nexus.adapter import Memories, Nexus, trimmed
from mantra_ray.nexus.records import Records
from mantra_ray.nexus.tokens import HEADER
from mantra_ray.training.descent import Descent
from mantra_ray.training.inputs import Space
from mantra_ray.training.residual import Regression, Stepper

ROUNDED, EXACT = 0.03, 1e-4  # tolerances: products in bfloat16, and in float32
STEPS = 10**6  # of the schedule: more than are made
REPLAYED = 3  # batches of a shape, of which a GPU replays the last from its record


def rows(card: Card, quick: bool) -> Iterator[Row]:
    """Rows of all work; on a GPU as written and compiled."""
    size = QUICK if quick else Size()
    yield entropy_row(card, size)
    yield loss_row(card, size)
    for compiled in (False, True) if _on_gpu(card) else (False,):
        yield header_row(card, size, compiled)
        for batch in size.batches:
            yield training_row(card, size, batch, compiled)
        yield stream_row(card, size, compiled)


def exact(model: Nexus) -> Nexus:
    """A copy in float64 on the CPU, run as written."""
    other = copy.deepcopy(model).double().cpu()
    other.transformer.reduced_on, other.transformer.compiled = (), False
    return other


def in_float64(thing: object) -> dict[str, Tensor]:
    """The tensors of records or of a memory on the CPU, real numbers in float64."""
    return {n: t.cpu().double() if t.is_floating_point() else t.cpu() for n, t in vars(thing).items()}


def block_flop(size: Size, length: int) -> float:
    """Operations of the blocks on `length` tokens: 12 D^2 weights a token, and its keys and values so far."""
    return size.layers * length * (24 * size.width**2 + 4 * size.width * (length + 1) / 2)


def header_flop(size: Size) -> float:
    """Operations of the blocks on a header, of which the last block needs keys and values, but one token alone."""
    spared = (HEADER - 1) * (20 * size.width**2) + 4 * size.width * (HEADER * (HEADER - 1) / 2)
    return block_flop(size, HEADER) - spared


def head_flop(width: int, vocabulary: int) -> float:
    """Operations of the head on a token."""
    return 2 * width * vocabulary


@torch.no_grad()
def header_row(card: Card, size: Size, compiled: bool) -> Row:
    """Hidden states of distinct headers, as a prediction or a warming pass asks for them."""
    vocabulary, records = make_records(size, size.headers, card.device)
    model, few = make_model(size, vocabulary, card.device, compiled), records.take(slice(size.checked))
    true = exact(model).transformer(few.header.cpu(), few.known.cpu())[:, -1]
    error = deviation(model.hidden(few)[:, -1], true)

    def work() -> Tensor:
        return model.hidden(records)

    floor = _per_second(card, header_flop(size))
    note = f"{size.headers:,} distinct headers"
    return _row(card, "header retrieval", compiled, work, size.headers, "records", floor, error, 1e7, note)


def entropy_row(card: Card, size: Size) -> Row:
    """Entropy and surprisal of 16 tokens, as a warming pass asks for them."""
    hidden, weight, content = _head_inputs(card, size)

    def plainly(hidden: Tensor, weight: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(head.logits(hidden, weight, _reduced(card, hidden)), dim=-1)
        return -(log_p.exp() * log_p).sum(-1), -log_p.gather(1, content).mean(-1)

    def work() -> tuple[Tensor, Tensor]:
        return head.entropy(hidden, weight, content, _reduced(card, hidden))

    with torch.no_grad():
        few, told = hidden[: size.checked], content[: size.checked]
        found = head.entropy(few, weight, told, _reduced(card, few), chunk=len(few) * len(weight) // 3)
        true = plainly(few.double(), weight.double(), told)
        error = max(deviation(mine, theirs) for mine, theirs in zip(found, true, strict=True))
        note = _beside(card, lambda: plainly(hidden, weight, content), len(hidden))
        floor = _per_second(card, head_flop(size.width, size.vocabulary))
        return _row(card, _title("entropy", size), False, work, len(hidden), "tokens", floor, error, None, note)


def loss_row(card: Card, size: Size) -> Row:
    """Cross-entropy of the next token and its gradients by hidden states and weights."""
    hidden, weight, content = _head_inputs(card, size)
    target, reduced = content[:, 0], _reduced(card, hidden)

    def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (loss.detach(), *torch.autograd.grad(loss, inputs))

    def plainly(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        logits = head.logits(hidden, weight, _reduced(card, hidden))
        return gradients(F.cross_entropy(logits, target), hidden, weight)

    def by_chunks(hidden: Tensor, weight: Tensor, target: Tensor, chunk: int | None = None) -> tuple[Tensor, ...]:
        return gradients(head.cross_entropy(hidden, weight, target, reduced, chunk), hidden, weight)

    few = [tensor.detach()[: size.checked].requires_grad_() for tensor in (hidden,)] + [weight]
    found = by_chunks(*few, target[: size.checked], chunk=size.checked * size.vocabulary // 3)
    true = plainly(*(tensor.detach().double().requires_grad_() for tensor in few), target[: size.checked])
    error = max(deviation(mine, theirs) for mine, theirs in zip(found, true, strict=True))
    note = _beside(card, lambda: plainly(hidden, weight, target), len(hidden))
    floor = _per_second(card, 3 * head_flop(size.width, size.vocabulary))

    def work() -> tuple[Tensor, ...]:
        return by_chunks(hidden, weight, target)

    title = _title("language loss", size)
    return _row(card, title, False, work, len(hidden), "tokens", floor, error, None, note)


def training_row(card: Card, size: Size, batch: int, compiled: bool) -> Row:
    """Epochs of Mode B: the read of a warmed memory, the language loss of all records, the step."""
    vocabulary, records = make_records(size, size.steps * batch, card.device)
    quiet = {"hide_state": 0.0, "hide_regulator": 0.0, "learning_rate": 1e-4}
    model = make_model(size, vocabulary, card.device, compiled, batch=batch, **quiet)
    memories, space = trimmed(model.warm(records)[0]), Space(lift=torch.eye(PROGRAMS, device=card.device))
    error = _first_loss_error(model, memories, records.take(slice(min(batch, size.checked))), space)
    stepper, draw = Stepper(model, dict(model.named_parameters()), STEPS), torch.Generator().manual_seed(0)
    regression = Regression(model, records, space, stepper)

    def work() -> float:
        return regression.epoch(memories, draw)

    def launched() -> float:
        other = Regression(model, records, space, stepper)
        other.descent.replays = False
        return other.epoch(memories, draw)

    said = block_flop(size, vocabulary.length - 1) + (vocabulary.length - 1) * head_flop(size.width, vocabulary.size)
    floor = _per_second(card, 3 * (header_flop(size) + said))
    note = f"{vocabulary.length} tokens a record, vocabulary {vocabulary.size:,}"
    work_name = f"Mode B step, batch {batch:,}"
    return _row(card, work_name, compiled, work, len(records), "records", floor, error, 1e5, note, 3, launched)


def _first_loss_error(model: Nexus, memories: Memories, records: Records, space: Space) -> float:
    """How far a step's loss at the first weights is from the error of the model's corrections in float64."""
    memories64 = [type(memory)(**in_float64(memory)) for memory in memories]
    records64, space64 = Records(**in_float64(records)), Space(lift=space.lift.double().cpu())
    with torch.no_grad():
        correction = exact(model)(memories64, records64).value
        true = space64.error(records64.residual, correction).mean()
    other = copy.deepcopy(model)
    other.config = replace(other.config, batch=len(records), learning_rate=0.0)
    stepper = Stepper(other, dict(other.named_parameters()), STEPS)
    regression, draw = Regression(other, records, space, stepper), torch.Generator().manual_seed(0)
    found = [regression.epoch(memories, draw) for _ in range(REPLAYED)][-1]
    return deviation(torch.tensor(found), true)


def stream_row(card: Card, size: Size, compiled: bool) -> Row:
    """Steps of the language model on windows of the stream, all of a step in one batch."""
    vocabulary, records = make_records(size, size.window * size.windows // 20 + 1, card.device)
    tokens = torch.cat([records.header, records.content], dim=1).flatten()
    windows = tokens[: size.window * size.windows].view(size.windows, size.window)
    model = make_model(size, vocabulary, card.device, compiled, learning_rate=1e-4).train()

    def losses(batch: Tensor) -> tuple[Tensor, Tensor]:
        loss = model.language_loss(batch)
        return loss, loss

    few, parameters = windows[: size.checked_windows], dict(model.transformer.named_parameters())
    checked = Descent(losses, list(parameters.values()), STEPS)
    for _ in range(REPLAYED):
        checked(few)
    other = exact(model)
    other.zero_grad()
    logits = other.transformer.logits(other.transformer(few[:, :-1].cpu()))
    F.cross_entropy(logits.flatten(0, 1), few[:, 1:].flatten().cpu()).backward()
    error = _gradient_error(model.transformer, other.transformer)
    stepper = Stepper(model, parameters, STEPS)
    descent = Descent(losses, stepper.parameters, STEPS)

    def work() -> None:
        descent(windows)
        stepper.step()

    def launched() -> None:
        Descent(losses, stepper.parameters, 1)(windows)

    length = size.window - 1
    flop = 3 * (block_flop(size, length) / length + head_flop(size.width, vocabulary.size))
    note = f"{size.windows} windows of {size.window:,}, vocabulary {vocabulary.size:,}"
    floor = _per_second(card, flop)
    return _row(card, "stream step", compiled, work, windows.numel(), "tokens", floor, error, 5e6, note, 5, launched)


def _gradient_error(model: nn.Module, true: nn.Module) -> float:
    """The largest relative error, in root mean square, of any parameter's gradient."""
    errors = [
        float((mine.grad.cpu() - theirs.grad).norm() / theirs.grad.norm())
        for mine, theirs in zip(model.parameters(), true.parameters(), strict=True)
    ]
    return max(errors)


def _head_inputs(card: Card, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states as they leave a norm, weights as they start, and 16 tokens each."""
    hidden = torch.randn(size.head_tokens, size.width, device=card.device)
    weight = 0.5 * torch.randn(size.vocabulary, size.width, device=card.device)
    content = torch.randint(0, size.vocabulary, (size.head_tokens, 16), device=card.device)
    return hidden.requires_grad_(), weight.requires_grad_(), content


def _reduced(card: Card, hidden: Tensor) -> bool:
    return _on_gpu(card) and hidden.dtype == torch.float32


def _on_gpu(card: Card) -> bool:
    return torch.device(card.device).type == "cuda"


def _title(work: str, size: Size) -> str:
    return f"{work} in chunks, vocabulary {size.vocabulary:,}"


def _beside(card: Card, plainly: Callable[[], object], tokens: int) -> str:
    """What the plain form does and takes."""
    rate, peak = tokens / seconds(plainly, card.device, repeats=3, warm_up=1), peak_bytes(plainly, card.device)
    return f"with all logits: {rate / 1e6:.2f} M tokens/s, {peak / 2**30:.1f} GiB"


def _per_second(card: Card, flop: float) -> tuple[float, str]:
    """How many such pieces of work a second the arithmetic allows."""
    least, bound = card.seconds(flop=flop)
    return 1 / least, bound


def _row(
    card: Card,
    work: str,
    compiled: bool,
    run: Callable[[], object],
    count: int,
    unit: str,
    floor: tuple[float, str],
    error: float,
    goal: float | None,
    note: str,
    repeats: int = 5,
    launched: Callable[[], object] | None = None,
) -> Row:
    """A row of the table; `launched` is the same work without replay, of whose memory nobody keeps count."""
    rate = count / seconds(run, card.device, repeats)
    peak, tolerance = peak_bytes(launched or run, card.device), ROUNDED if _on_gpu(card) else EXACT
    name = f"{work}, compiled" if compiled else work
    return Row(name, rate, f"{unit}/s", floor[0], floor[1], peak, error, tolerance, goal, note)
