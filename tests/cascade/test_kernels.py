"""A round and a readout by GPU kernels are what float64 arithmetic gives, forward and backward.

Where there is no GPU, Triton's interpreter runs the kernels; it must be chosen before they are compiled, so that this
takes a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mantra_ray.bench.grn import dense_operators, make_inputs
from mantra_ray.cascade import kernels
from mantra_ray.cascade.rounds import ReadOut, Round, SignedEdges

# Width (its half is a power of two or not), records, type, slope, and the tolerance relative to the largest number.
CASES = [(10, 5, "float32", 0.1, 1e-6), (16, 1, "bfloat16", 0.1, 2e-2), (10, 40, "float32", 1.0, 1e-6)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def off(found, wanted) -> list[float]:
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)]


def deviations(hidden: int, batch: int, name: str, slope: float) -> dict[str, list[float]]:
    """Of results and gradients, relative to the largest number of each."""
    inputs, kind = make_inputs(48, 5, 0), getattr(torch, name)
    nodes, genes = len(inputs.features), len(inputs.features) - 7
    edges = SignedEdges(inputs, nodes, torch.device(DEVICE))
    torch.manual_seed(hidden)
    states = torch.randn(nodes, batch, hidden, device=DEVICE).to(kind)
    arguments = [states, *(torch.randn(rows, hidden, device=DEVICE) / 4 for rows in (hidden, 4, 4))]
    arguments = [tensor.requires_grad_() for tensor in arguments]
    condition = torch.randint(4, (batch,), device=DEVICE)
    result = Round.apply(*arguments, condition, edges, slope, 1)
    direction = torch.randn(result.shape, device=DEVICE).to(kind)
    found = [result.detach(), *torch.autograd.grad(result, arguments, direction)]
    exact = [tensor.detach().double().requires_grad_() for tensor in arguments]
    halves = (exact[0] @ exact[1].T).chunk(2, -1)
    operators = [matrix.double() for matrix in dense_operators(inputs, edges, DEVICE)]
    received = [(matrix @ half.flatten(1)).view(half.shape) for matrix, half in zip(operators, halves, strict=True)]
    sums = torch.cat(received, -1)
    result = F.leaky_relu(exact[0] + exact[3][condition] + exact[2][condition] * sums, slope)
    wanted = [result.detach(), *torch.autograd.grad(result, exact, direction.double())]
    out = {"round": off(found, wanted)}

    hidden_, weight = states.detach().requires_grad_(), torch.randn(genes, hidden, device=DEVICE, requires_grad=True)
    node, each = torch.randint(nodes, (batch,), device=DEVICE), torch.arange(batch, device=DEVICE)
    found = ReadOut.apply(hidden_, weight, node, each)
    directions = [torch.randn_like(tensor) for tensor in found]
    found = [*(tensor.detach() for tensor in found), *torch.autograd.grad(found, [hidden_, weight], directions)]
    exact = [hidden_.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    wanted = torch.einsum("gbh,gh->gb", exact[0][:genes], exact[1]), exact[0][node, each]
    gradients = torch.autograd.grad(wanted, exact, [tensor.double() for tensor in directions])
    return out | {"readout": off(found, [*(tensor.detach() for tensor in wanted), *gradients])}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    if DEVICE == "cuda":
        return [deviations(*case[:4]) for case in CASES]
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("kernels") / "found.pt"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, __file__, str(out)], env=environment, check=True, timeout=120)
    return torch.load(out)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_kernels_compute_what_float64_does(measured, number):
    found, tolerance = measured[number], CASES[number][4]
    assert len(found["round"]) == 5 and len(found["readout"]) == 4
    assert max(found["round"]) < tolerance and max(found["readout"]) < tolerance


if __name__ == "__main__":
    kernels.available = lambda states: True
    torch.save([deviations(*case[:4]) for case in CASES], sys.argv[1])
