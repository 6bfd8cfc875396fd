"""Write candidates of several workers: each computes its own share of the records, and all hold them in the end.

Every worker holds the whole memory and all records. What a warming pass needs of the transformer is a key for each
manifold, the gate's signal and the surprisal: C = H D + 2 numbers a record. Worker r of W computes them for records
r P to (r + 1) P - 1 of N, P = ceil(N / W); one all-gather of the packed rows follows, and then the same pass over the
same bytes everywhere. So all memories are the same bit for bit, and those of one worker to float tolerance: a product
of fewer rows may round otherwise, and a record at the very threshold of the gate may fall to its other side.

**What it costs.** A worker computes N / W headers in place of N. It sends its P C numbers and receives (W - 1) P C,
4 bytes each: about N (H D + 2) 4 (W - 1) / W bytes a pass, 1 KiB a record at D = 256. That does not fall with the write
density: whether a record is written hangs on its similarity to records written before it, hence on its key and theirs,
and is known only once the sequential pass has come to it. So the keys of all candidates travel, also of those that the
gate turns away. Values do not: every worker holds the records. The pass itself is done by all, and does not scale.

**Memories larger than one device** (a design, not built). A record touches the slots of its own bucket alone, so that
a manifold can be split by buckets: worker b mod W owns bucket b. To write, an all-to-all in place of the all-gather
takes each key and its two numbers to the bucket's owner, and the value too where records are shared out as well:
about N (D + V + 2) 4 / W bytes from each worker. Every owner then warms its buckets in global record order, so that
the pass scales too. To read a batch of n, an all-to-all takes the queries to their owners (n D 4 bytes in all), a
second one brings back what was read and its scalars (n (V + 8) 4 bytes); the owners keep what the gradient needs, and
the backward pass costs the same two exchanges again. Each manifold has owners of its own. What stays exact: every
read, a softmax over one bucket; waves, evictions and priorities, which know one bucket; the gate by residual, which
demands a token's records in one bucket already. The gate by entropy needs its token's statistics, which the owner has
unless the route spreads a token over buckets; then all signals are gathered, 4 bytes a record. What is lost: a step
waits for the owner of the fullest buckets, and for four exchanges that cannot overlap with the read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13


def workers() -> tuple[int, int]:
    """Rank and number of the workers that train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(records: int, rank: int, world: int) -> slice:
    """The contiguous rows of `records` that a worker computes; the last workers may have fewer, or none."""
    each = -(-records // world)
    return slice(min(rank * each, records), min((rank + 1) * each, records))


def gathered(parts: Sequence[Tensor], records: int) -> list[Tensor]:
    """Tensors [n, ...] of this worker's `share`, as tensors [records, ...] in the order of all records.

    One collective, in which every worker must take part; gradients do not pass. One worker gets its own tensors
    back. Raises ValueError unless all parts are of one type and hold the rows of the share.
    """
    rank, world = workers()
    mine = share(records, rank, world)
    if any(part.dtype != parts[0].dtype or len(part) != mine.stop - mine.start for part in parts):
        told = ", ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
        raise ValueError(f"parts ({told}) are not the {mine.stop - mine.start} rows of worker {rank} in one type")
    if world == 1 or not records:
        return list(parts)
    rows = torch.cat([part[:, None].flatten(1) for part in parts], dim=1)
    # all but the last shares are whole, so that the rows that fill up the others end up behind all records
    rows = F.pad(rows, (0, 0, 0, -(-records // world) - len(rows)))
    device = rows.device
    if dist.get_backend() == "gloo":  # which gathers from main memory alone
        rows = rows.cpu()
    whole = rows.new_empty(world * len(rows), rows.shape[1])
    _all_gather(whole, rows)
    whole = whole[:records].to(device)
    columns = whole.split([part[:, None].flatten(1).shape[1] for part in parts], dim=1)
    return [c.reshape(records, *part.shape[1:]).contiguous() for c, part in zip(columns, parts, strict=True)]


def received(records: int, columns: int, world: int, size: int = 4) -> int:
    """Bytes that each worker receives in `gathered`, of `columns` numbers a record with `size` bytes each."""
    return (world - 1) * -(-records // world) * columns * size
