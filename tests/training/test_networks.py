import numpy as np
import pytest
import torch

from mantra_ray.cascade.grn import predict_grn
from mantra_ray.cascade.smoother import LaplacianSmoother
from mantra_ray.config import GrnConfig
from mantra_ray.data.graph import Graph
from mantra_ray.errors import InputError
from mantra_ray.training.distributed import Unit, train_unit
from mantra_ray.training.networks import are_whole, load_networks, networks_file, save_networks
from mantra_ray.training.stages import records_of


@pytest.fixture
def trained(screen, tmp_path):
    """Records, and results of two units of unlike shape."""
    records = records_of(screen)
    configs = GrnConfig(hidden=8, layers=1, epochs=1, folds=2), GrnConfig(hidden=6, layers=3, epochs=1, folds=2)
    units = [
        Unit(tmp_path / "u.npz", np.arange(40), np.arange(5, 35), 5.0, config, seed)
        for seed, config in enumerate(configs)
    ]
    return records, [train_unit(records, unit) for unit in units]


def test_networks_come_back_with_the_predictions_they_left(trained, tmp_path):
    records, results = trained
    save_networks(tmp_path / "grn.pt", results, None, 0.1)
    generator = torch.random.get_rng_state()
    networks = load_networks(tmp_path / "grn.pt")
    assert torch.equal(torch.random.get_rng_state(), generator)
    for model, scale, result in zip(networks.models, networks.scales, results, strict=True):
        assert scale == result["inputs.scale"]
        unit = type("Unit", (), {"scale": scale})
        again = predict_grn(model, unit, records.regulator, records.dose, records.state)
        np.testing.assert_array_equal(again, result["base"])
    change = np.ones((2, 30), np.float32)
    assert networks.smooth(change) is change


def test_the_manifold_comes_back(trained, tmp_path):
    edges = np.array([0, 1, 2]), np.array([3, 4, 29]), np.array([1.0, -2.0, 3.0], np.float32)
    save_networks(tmp_path / "grn.pt", trained[1], Graph(tuple(map(str, range(30))), *edges), 0.7)
    change = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    expected = LaplacianSmoother(*edges, 30, 0.7)(change)
    np.testing.assert_array_equal(load_networks(tmp_path / "grn.pt").smooth(change), expected)
    assert np.abs(expected - change).max() > 0.1


@pytest.mark.parametrize("name", ("../grn.pt", "/grn.pt", "units/grn.pt", ".."))
def test_a_fold_names_no_file_outside_its_folder(tmp_path, name):
    assert networks_file(tmp_path, {"networks": "grn.pt"}) == tmp_path / "grn.pt"
    with pytest.raises(InputError, match="beside the fold"):
        networks_file(tmp_path, {"networks": name})


def test_a_damaged_file_is_told_and_none_is_left_half_written(trained, tmp_path):
    path = tmp_path / "grn.pt"
    assert not are_whole(path)
    with pytest.raises(InputError, match="networks"):
        load_networks(path)
    save_networks(path, trained[1], None, 0.1)
    assert are_whole(path) and [file.name for file in tmp_path.iterdir()] == ["grn.pt"]
    whole = path.read_bytes()
    middle = whole.index(trained[1][0]["weights.gene_readout"].tobytes())
    for damaged in (whole[:100], b"", b"text", whole[:-500], whole[:middle] + b"!!!!!!!!" + whole[middle + 8 :]):
        path.write_bytes(damaged)
        assert not are_whole(path)
        with pytest.raises(InputError, match="cannot be read"):
            load_networks(path)
