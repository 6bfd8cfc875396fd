"""Functions of many rows that run as written or, on a GPU and for long runs, compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

FEW = 2**20  # numbers of a first argument that are not worth the guards of a graph, let alone compiling one
GRAPHS = 64  # of a function in one process, before torch gives up and runs it as written


class Compiled:
    """`function`, and on demand the same compiled by `torch.compile`, in one graph for any number of rows.

    The first `batched` arguments are tensors of equally many rows; each other length or width, and training beside
    inference, has a graph of its own. Which of the two runs hangs on the arguments' shapes alone, so that workers
    agree. Where the compiler does not work the function runs as written, with a warning. TORCH_COMPILE_DISABLE=1 in
    the environment switches compiling off, as everywhere in torch.
    """

    def __init__(self, function: Callable[..., Any], batched: int = 1):
        self.function, self.batched, self.works = function, batched, True

    @cached_property
    def graph(self) -> Callable[..., Any]:
        """The compiled function; torch's compiler is only imported here, since that takes a second."""
        # a process that trains models of several widths needs more graphs than torch allows by default
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
        return torch.compile(self.function, dynamic=False)

    def __call__(self, wanted: bool, *arguments: Any) -> Any:
        """The function of the arguments, compiled if that is `wanted` and they are not small."""
        if not (wanted and self.works) or torch.compiler.is_compiling() or arguments[0].numel() < FEW:
            return self.function(*arguments)
        for tensor in arguments[: self.batched]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            return self.graph(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.works = False
            warnings.warn(f"{self.function.__name__} runs uncompiled: {type(error).__name__}: {error}", stacklevel=2)
            return self.function(*arguments)
