"""Edge lists and the co-expression graph."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mantra_ray.data.graph import Graph, coexpression_graph, from_edges, read_graph, union
from mantra_ray.errors import InputError


def edges(graph: Graph) -> dict:
    ends = zip(graph.source, graph.target, graph.weight, strict=True)
    return {(graph.nodes[s], graph.nodes[t]): pytest.approx(w) for s, t, w in ends}


def test_all_forms_of_edge_list_agree(tmp_path):
    text = "source,target,weight\nA,NA,0.5\nB,A,-2\n"
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "b.tsv").write_text(text.replace(",", "\t"))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))  # as Excel writes it
    pq.write_table(pa.table({"source": ["A", "B"], "target": ["NA", "A"], "weight": [0.5, -2]}), tmp_path / "d.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert edges(read_graph(path)) == {("A", "NA"): 0.5, ("B", "A"): -2}, path
    (tmp_path / "e.csv").write_text("source,target\nA,B\n")
    assert edges(read_graph(tmp_path / "e.csv")) == {("A", "B"): 1}


def test_dorothea_confidence_and_sign(tmp_path):
    (tmp_path / "d.csv").write_text("tf,confidence,target,mor\nT,A,x,1\nT,B,y,-1\nT,D,z,1\nT,E,v,1\n")
    assert edges(read_graph(tmp_path / "d.csv")) == {("T", "x"): 1, ("T", "y"): -0.8, ("T", "z"): 0.4}


def test_repeated_edges_keep_the_strongest():
    assert edges(from_edges(["A", "A", "B"], ["B", "B", "A"], [0.5, -2, 0])) == {("A", "B"): -2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("source,weight\nA,1\n", "target: the table has no such column"),
        ("source,target,weight\nA,B,x\n", "weight: row 0 is not a number .found 'x'"),
        ("source,target,weight\nA,B,inf\n", "weight: row 0 is infinite"),
        ("source,target,weight\nA,B,1\nA,C,\n", "weight: row 1 is empty"),
        ("source,target,weight\nA,,1\n", "target: row 0 is empty"),
        ("source,target,weight\nA,B,0\n", "no edge has a weight"),
        ("tf,target,confidence\nA,B,Z\n", "confidence: row 0 is not one of A, B, C, D, E .found 'Z'"),
        ("source,target\n", "no rows"),
        ("source,target\nA,B,C\n", "cannot be read as a table"),
        ("source,target,target\nA,B,C\n", "column names repeat"),
    ],
)
def test_bad_edge_lists_are_refused(tmp_path, text, problem):
    path = tmp_path / "edges.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        read_graph(path)
    assert str(caught.value).startswith(str(path))


def test_absent_damaged_or_unknown_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_graph(tmp_path / "none.csv")
    for name, content in (("a.parquet", b"PAR1 no"), ("a.csv.gz", gzip.compress(b"source,target\n" * 99)[:20])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as a table"):
            read_graph(tmp_path / name)
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match="unknown kind of table"):
        read_graph(tmp_path / "a.xlsx")


def test_restrict_keeps_order_and_isolated_nodes():
    graph = from_edges(["A", "A", "C"], ["B", "C", "B"], [1, 2, 3])
    part = graph.restrict(["Z", "B", "A"])
    assert part.nodes == ("Z", "B", "A") and edges(part) == {("A", "B"): 1}


def test_coexpression_finds_the_planted_partners():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(60, 2))
    change = np.stack([base[:, 0], -base[:, 0], base[:, 1], base[:, 1], np.zeros(60)], axis=1)
    change[:, :4] += 0.1 * rng.normal(size=(60, 4))
    graph = coexpression_graph(change, ["a", "b", "c", "d", "still"], top_k=1)
    found = edges(graph)
    assert set(found) == {("b", "a"), ("a", "b"), ("d", "c"), ("c", "d")}
    assert graph.weight[[graph.nodes[t] == "a" for t in graph.target]] < -0.9


def test_coexpression_in_blocks_is_the_top_of_the_correlation_matrix():
    rng = np.random.default_rng(1)
    genes = 1100  # more than one block
    change = rng.normal(size=(12, genes)).astype(np.float32)
    graph = coexpression_graph(change, [f"g{i}" for i in range(genes)], top_k=3)
    r = np.corrcoef(change.T)
    np.fill_diagonal(r, 0)
    for target in (0, 1023, 1024, 1099):
        into = graph.target == target
        assert set(graph.source[into]) == set(np.argsort(-np.abs(r[target]))[:3])
        np.testing.assert_allclose(graph.weight[into], r[target, graph.source[into]], atol=1e-4)


def test_coexpression_below_the_threshold_and_of_unmeasured_genes_is_left_out():
    rng = np.random.default_rng(2)
    change = rng.normal(size=(20, 12))
    names = [f"g{i}" for i in range(12)]
    whole, strong = coexpression_graph(change, names, top_k=11), coexpression_graph(change, names, 11, threshold=0.3)
    assert edges(strong) == {ends: w for ends, w in edges(whole).items() if abs(w.expected) >= 0.3}
    assert 0 < len(strong.weight) < len(whole.weight) == 12 * 11
    change[3, 5] = np.nan
    assert not np.isin(5, [*coexpression_graph(change, names).source, *coexpression_graph(change, names).target])


def test_a_union_has_the_edges_of_both_and_the_first_ones_weights():
    first = from_edges(["a", "b"], ["b", "c"], [1, -1]).restrict("abc")
    second = from_edges(["a", "c"], ["b", "a"], [0.3, 0.4]).restrict("abc")
    assert edges(union(first, second)) == {("a", "b"): 1, ("b", "c"): -1, ("c", "a"): 0.4}
