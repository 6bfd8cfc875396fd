"""The gather of several workers: in the order of all records, bit for bit, whatever the shares."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.nexus import adapter
from mantra_ray.nexus.gather import gathered, received, share

LARGEST = 4  # workers
# Answers each line that it reads by one with what every worker says: that it met the others, or what it gathered.
# The workers fork once all is imported.
WORKERS = f"""
import json, sys
from multiprocessing import get_context
import torch
import torch.distributed as dist
from mantra_ray.nexus import gather

torch.set_num_threads(1)
sent, plain = [], gather._all_gather

def counted(whole, mine):
    sent.append(whole.nbytes - mine.nbytes)
    plain(whole, mine)

gather._all_gather = counted

def answer(rank, case):
    if "meet" in case:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("gloo", init_method=case["meet"], rank=rank, world_size=case["world"])
        return None
    whole = [torch.tensor(part, dtype=torch.int64).view(torch.float64) for part in case["bits"]]
    whole = [part.reshape(case["records"], *shape) for part, shape in zip(whole, case["shapes"])]
    rows = gather.share(case["records"], *gather.workers())
    sent.clear()
    found = gather.gathered([part[rows] for part in whole], case["records"])
    told = [[part.flatten().view(torch.int64).tolist(), list(part.shape), part.is_contiguous()] for part in found]
    return {{"rows": [rows.start, rows.stop], "parts": told, "sent": list(sent)}}

def work(rank, pipe):
    while (case := pipe.recv()) is not None:
        try:
            told = answer(rank, case)
        except Exception as error:
            told = {{"error": repr(error)}}
        pipe.send(told)

context = get_context("fork")
ends = [context.Pipe() for _ in range({LARGEST})]
workers = [context.Process(target=work, args=(rank, other), daemon=True) for rank, (_, other) in enumerate(ends)]
for worker in workers:
    worker.start()
for line in sys.stdin:
    case = json.loads(line)
    mine = [pipe for pipe, _ in ends[:case["world"]]]
    for pipe in mine:
        pipe.send(case)
    print(json.dumps([pipe.recv() for pipe in mine]), flush=True)
"""


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Asks the first `world` processes of a group; the answer of each."""
    folder = tmp_path_factory.mktemp("group")
    (folder / "workers.py").write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(folder / "workers.py")], env=environment, stdin=pipe, stdout=pipe, text=True
    ) as workers:

        def ask(world, **case):
            if "meet" in case:
                case["meet"] = f"file://{folder}/meet{world}"
            workers.stdin.write(json.dumps({"world": world} | case) + "\n")
            workers.stdin.flush()
            return json.loads(workers.stdout.readline())

        yield ask


@pytest.fixture(scope="module", params=range(1, LARGEST + 1))
def world(group, request):
    assert group(request.param, meet=True) == [None] * request.param
    return request.param


SHAPES = st.lists(st.sampled_from([(), (1,), (3,), (2, 2)]), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(records=st.integers(0, 3 * LARGEST), shapes=SHAPES, seed=st.integers(0, 2**31))
def test_every_worker_gets_all_rows_in_order_bit_for_bit(group, world, records, shapes, seed):
    draw = torch.Generator().manual_seed(seed)  # of all bit patterns, infinities and NaNs among them
    bits = [torch.randint(-(2**63), 2**63 - 1, (records, *shape), generator=draw) for shape in shapes]
    told = group(world, records=records, shapes=shapes, bits=[part.flatten().tolist() for part in bits])
    columns = sum(part[0].numel() for part in bits) if records else 0
    for found in told:
        for (values, shape, contiguous), part in zip(found["parts"], bits, strict=True):
            assert values == part.flatten().tolist() and shape == list(part.shape) and contiguous
        # one collective, of as many bytes as `received` says
        assert found["sent"] == ([received(records, columns, world, size=8)] if world > 1 and records else [])
    edges = [found["rows"] for found in told]
    assert edges[0][0] == 0 and edges[-1][1] == records
    assert all(one[1] == other[0] for one, other in itertools.pairwise(edges))


@given(records=st.integers(0, 200), world=st.integers(1, 70))
def test_shares_cut_the_records_into_runs_of_which_none_is_longer_than_it_must_be(records, world):
    rows = [list(range(records))[share(records, rank, world)] for rank in range(world)]
    assert list(itertools.chain(*rows)) == list(range(records))
    assert max(map(len, rows)) == -(-records // world)


@given(records=st.integers(0, 10**6), columns=st.integers(1, 600), world=st.integers(1, 64))
def test_bytes_are_those_of_the_other_workers_rows(records, columns, world):
    others = records * columns * 4 * (world - 1) / world
    assert others <= received(records, columns, world) < others + world * columns * 4


def test_one_worker_gets_its_own_tensors_back():
    parts = [torch.rand(5), torch.rand(5, 3)]
    assert all(found is part for found, part in zip(gathered(parts, 5), parts, strict=True))


@pytest.mark.parametrize("part", [torch.rand(4), torch.rand(5).double(), torch.arange(5)])
def test_rows_of_another_number_or_type_are_refused(part):
    with pytest.raises(ValueError, match="are not the 5 rows of worker 0 in one type"):
        gathered([torch.rand(5), part], 5)


@pytest.mark.parametrize("routing", ["regulator", "levels"])
def test_a_worker_computes_its_own_share_alone(build, monkeypatch, routing):
    case, sent = build(routing=routing), []
    whole = case.model.streams(case.train)
    parts = [whole[0].signal, whole[0].surprisal, *(stream.candidates.key for stream in whole)]

    def exchange(mine, records):
        sent.extend(mine)
        return parts

    monkeypatch.setattr(adapter, "workers", lambda: (1, 3))
    monkeypatch.setattr(adapter, "gathered", exchange)
    found = case.model.streams(case.train)
    rows = slice(28, 56)  # of 84
    for mine, part in zip(sent, parts, strict=True):
        assert len(mine) == 28 and torch.allclose(mine, part[rows], atol=1e-5)
    for stream, other in zip(found, whole, strict=True):
        assert all(torch.equal(value, vars(other.candidates)[name]) for name, value in vars(stream.candidates).items())
