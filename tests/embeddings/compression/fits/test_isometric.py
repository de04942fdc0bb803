import json

import pytest
import torch

from dlrmctl.embeddings.compression.fits.isometric import stored_distortion
from dlrmctl.embeddings.compression.fits.methods import Method, least_bytes
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.rows import from_parts
from dlrmctl.embeddings.compression.rules.sharing import Isometric
from tests.embeddings.compression.tables import table_rows

ROWS, RANK = 400, 4


@pytest.fixture(scope="module")
def table() -> TableRows:
    return table_rows(ROWS)


@pytest.fixture(scope="module", params=["nile-pro", "fromax"])
def fitted(request: pytest.FixtureRequest, table: TableRows) -> Isometric:
    found = Method.parse(f"{request.param}{RANK}-int8").fit(table)
    assert isinstance(found, Isometric)
    return found


def test_coordinates_are_the_map_of_the_rows(table: TableRows, fitted: Isometric):
    exact = (table.weight - fitted.mean) @ fitted.projection.T
    stored = fitted.coordinates.expand()
    # Half a step of 255 over the range of a row, and as much again for its half precision.
    step = (exact.amax(1) - exact.amin(1)) / 255
    assert bool(((stored - exact).abs().amax(1) <= step + 1e-6).all())


def test_rows_and_their_coordinates_have_the_same_distances(fitted: Isometric):
    rows, coordinates = fitted.expand().double(), fitted.coordinates.expand().double()
    # The basis is orthonormal to float32.
    torch.testing.assert_close(torch.cdist(rows, rows), torch.cdist(coordinates, coordinates), rtol=1e-5, atol=1e-6)


def test_the_certificate_holds_for_every_pair_as_stored(table: TableRows, fitted: Isometric):
    rows, coordinates = table.weight.double(), fitted.coordinates.expand().double()
    first, second = torch.triu_indices(ROWS, ROWS, 1)
    before = (rows[first] - rows[second]).square().sum(1)
    after = (coordinates[first] - coordinates[second]).square().sum(1)
    apart = before > 1e-12 * (rows[first].square().sum(1) + rows[second].square().sum(1))
    worst = float((after[apart] / before[apart] - 1).abs().max())
    assert fitted.certificate["stored_delta"] == pytest.approx(worst, rel=1e-9)
    assert fitted.certificate["sample_rows"] == ROWS
    assert fitted.certificate["pairs"] + fitted.certificate["copies"] == ROWS * (ROWS - 1) // 2
    assert fitted.certificate["delta"] < 1


def test_the_map_distorts_less_than_pca_and_keeps_as_many_neighbours(fitted: Isometric):
    maps = {figures["name"]: figures for figures in fitted.certificate["maps"]}
    own = maps[fitted.certificate["objective"]]
    assert own["delta"] <= maps["pca"]["delta"]
    assert own["recall"] >= maps["pca"]["recall"] - 0.01


def test_it_survives_a_file_with_its_certificate(fitted: Isometric):
    read = from_parts(json.loads(json.dumps(fitted.spec())), fitted.parts())
    assert isinstance(read, Isometric)
    assert read.certificate == fitted.certificate
    assert torch.equal(read.expand(), fitted.expand())


def test_training_would_void_the_certificate_so_there_is_none(fitted: Isometric):
    assert not fitted.can_train
    assert Method.parse("int8").fit(table_rows(20)).can_train


def test_copies_of_a_row_put_no_demands_on_the_distortion():
    rows = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[3] = rows[7]
    assert stored_distortion(rows, 2 * rows) == pytest.approx(3.0)
    moved = rows.clone()
    moved[3] += 1e-9
    assert stored_distortion(rows, moved) < 1e-6


def test_what_no_map_fits_is_told(table: TableRows):
    with pytest.raises(ValueError, match="must be from 1 to 16"):
        Method.parse("nile-pro17").fit(table)
    with pytest.raises(ValueError, match="cannot have a head"):
        Method.parse("head2%+nile-pro8")
    with pytest.raises(ValueError, match="rows are equal"):
        Method.parse("fromax2").fit(TableRows(torch.ones(9, 4), torch.ones(9)))


def test_its_bytes_are_known_before_a_fit(fitted: Isometric):
    method = Method.parse(f"{fitted.certificate['objective']}{RANK}-int8")
    assert fitted.num_bytes == least_bytes(method, ROWS, 16)
