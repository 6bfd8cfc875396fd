"""The GRN-GNN and one round of it by dense products in float64, and how far what is fast deviates from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from mantra_ray.bench.grn import DOSES, STATES, dense_operators, dense_round, make_inputs
from mantra_ray.bench.measured import deviation
from mantra_ray.cascade import kernels
from mantra_ray.cascade.graph_inputs import GrnInputs
from mantra_ray.cascade.grn import SLOPE, Grn, dose_features
from mantra_ray.cascade.rounds import Round, SignedEdges, block_of
from mantra_ray.config import GrnConfig

SMALL = (64, 5, 16, 5)  # genes, edges a gene, width and records of what is compared


def round_tensors(nodes: int, batch: int, hidden: int, kind: torch.dtype, device: str):
    """States, weight, gain and offset of random numbers; each record's condition; a direction of the result."""
    kinds = len(DOSES) * STATES
    shapes = (nodes, batch, hidden), (hidden, hidden), (kinds, hidden), (kinds, hidden)
    tensors = [torch.randn(shape, device=device) / (8 if len(shape) == 2 else 1) for shape in shapes]
    condition, direction = torch.randint(kinds, (batch,), device=device), torch.randn(shapes[0], device=device)
    return [tensor.to(kind).requires_grad_() for tensor in tensors], condition, direction.to(kind)


def widened(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """States as they are, parameters in float32."""
    return [tensors[0], *(tensor.detach().float().requires_grad_() for tensor in tensors[1:])]


def sparse_round(edges: SignedEdges, states, weight, gain, offset, condition) -> torch.Tensor:
    """As the network computes it."""
    return Round.apply(states, weight, gain, offset, condition, edges, SLOPE, block_of(states))


def both(
    form: Callable, tensors: list[torch.Tensor], condition: torch.Tensor, direction: torch.Tensor
) -> list[torch.Tensor]:
    """A round's result and its gradients along a direction."""
    out = form(*tensors, condition)
    return [out.detach(), *torch.autograd.grad(out, tensors, direction)]


def round_errors(kind: torch.dtype, device: str, seed: int) -> tuple[float, float]:
    """Largest deviation of a small round with its gradients, and of its sums, from dense ones in float64."""
    torch.manual_seed(seed)
    genes, per_gene, hidden, batch = SMALL
    inputs = make_inputs(genes, per_gene, seed)
    nodes = len(inputs.features)
    edges = SignedEdges(inputs, nodes, torch.device(device))
    tensors, condition, direction = round_tensors(nodes, batch, hidden, kind, device)
    tensors = widened(tensors)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    operators = [matrix.double() for matrix in dense_operators(inputs, edges, device)]
    found = both(partial(sparse_round, edges), tensors, condition, direction)
    wanted = both(partial(dense_round, operators), exact, condition, direction.double())
    halves = zip(operators, exact[0].chunk(2, -1), strict=True)
    sums = torch.cat([(matrix @ half.flatten(1)).view(half.shape) for matrix, half in halves], -1)
    message = tensors[0].detach()
    fast = kernels.sums(edges.rows(), message) if kernels.available(message) else edges.pass_along(message.float())
    return max(map(deviation, found, wanted)), deviation(fast, sums)


def random_records(inputs: GrnInputs, count: int, device: str) -> list[torch.Tensor]:
    """Regulators, doses and states of random records."""
    regulator = torch.randint(len(inputs.regulator_node), (count,))
    dose = torch.tensor(DOSES)[torch.randint(len(DOSES), (count,))]
    return [array.to(device) for array in (regulator, dose, torch.randint(STATES, (count,)))]


def network_error(precision: str, device: str, seed: int) -> float:
    """Largest deviation of a small network's changes and gradients from those of dense products in float64.

    Of each parameter's gradient; in bfloat16 by the root mean square of all, since where a state near 0 changes its
    sign in rounding, the rectifier's slope changes tenfold and a gradient with it.
    """
    genes, per_gene, hidden, batch = SMALL
    inputs = make_inputs(genes, per_gene, seed)
    torch.manual_seed(seed)
    model = Grn(inputs, GrnConfig(hidden=hidden, layers=3, precision=precision), device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows, exact = random_records(inputs, batch, device), copy.deepcopy(model).double()
    operators = [matrix.double() for matrix in dense_operators(inputs, model.edges, device)]
    found, wanted = model(*rows), dense_changes(exact, operators, *rows)
    direction = torch.randn_like(found)
    for out, net in ((found, model), (wanted, exact)):
        torch.autograd.backward(out, direction.to(out.dtype), inputs=list(net.parameters()))
    gradients = [(a.grad, b.grad) for a, b in zip(model.parameters(), exact.parameters(), strict=True)]
    if precision == "float32":
        return max(deviation(mine, its) for mine, its in [(found, wanted), *gradients])
    off = sum(float((mine - its).square().sum()) for mine, its in gradients)
    whole = sum(float(its.square().sum()) for _, its in gradients)
    return max(deviation(found, wanted), (off / whole) ** 0.5)


def dense_changes(
    model: Grn, operators: list[torch.Tensor], regulator: torch.Tensor, dose: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    """Changes [B, G] of a network in float64, by dense products over all nodes of every record."""
    each, node = torch.arange(len(regulator), device=dose.device), model.node[regulator]
    condition = torch.cat([dose_features(dose), F.one_hot(state, model.states)], 1).double()
    hidden = torch.tanh(model.embed(model.features))[:, None].repeat(1, len(each), 1)
    entering = dose.double()[:, None] * (model.perturbation + model.own[regulator])
    hidden = hidden.index_put((node, each), entering, accumulate=True)
    for layer, (message, film) in enumerate(zip(model.message, model.film, strict=True)):
        gain, offset = film(condition).chunk(2, 1)
        halves = zip(operators, message(hidden).chunk(2, -1), strict=True)
        received = torch.cat([(matrix @ half.flatten(1)).view(half.shape) for matrix, half in halves], -1)
        kept = model.stay(hidden) * (1 + gain) if layer == 0 else hidden
        hidden = F.leaky_relu(kept + (1 + gain) * received + offset, SLOPE)
    common = model.common(torch.cat([hidden[node, each], condition], 1))
    changes = torch.einsum("gbh,gh->bg", hidden[: model.genes], model.readout + model.gene_readout)
    left = 4 * condition[:, 1] * model.unit * (1 + model.itself(condition)[:, 0]) * (node < model.genes)
    place = each, node.clamp_max(model.genes - 1)
    return (changes + common @ model.common_genes.T).index_put(place, left, accumulate=True)
