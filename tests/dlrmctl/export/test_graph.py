"""The served graph: every kind of table gives what TorchRec's lookups give, through one program for all batch sizes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.compression.rules.pack import pack
from dlrmctl.embeddings.compression.rules.rows import StoredRows
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.embeddings.words import OPERATIONS, OPERATIONS_OF, QR_LAYOUTS
from dlrmctl.export.agreement import Inputs
from dlrmctl.export.graph import PADDING, ServedModel
from dlrmctl.export.program import to_program, write_program
from dlrmctl.models import DLRM, DenseNetwork

DIM, DENSE, LONGEST, OFFSET = 24, 4, 3, -0.5  # a third of 24 columns, for "concat" of three, is a multiple of 4
# Products are sums of up to a few hundred float32 numbers near 1, in another order for lists; see `agreement.ROUNDING`.
ROUNDING = 2.0**-16


def _every_kind() -> dict[str, FeatureTable]:
    """One feature of one id for all kinds, operations and layouts."""
    specs: dict[str, dict] = {"full": {}, "hash": {"collisions": 4}, "double-hash": {"collisions": 4}}
    specs |= {f"qr-{op}-{large}": {"operation": op, "qr_layout": large} for op in OPERATIONS for large in QR_LAYOUTS}
    specs |= {f"{kind}-{op}": {"operation": op} for kind in ("kway", "crt") for op in OPERATIONS_OF[kind]}
    specs |= {f"head-{op}": {"head": 20, "tail": "qr", "operation": op} for op in OPERATIONS_OF["head"]}
    specs["head-hash"] = {"head": 20, "tail": "hash"}
    features = {}
    for number, (name, spec) in enumerate(specs.items()):
        kind = name if name == "double-hash" else name.split("-")[0]
        features[name] = FeatureTable(name, rows=97 + number, embedding=kind, **{"collisions": 5, **spec})
    return features


def _lists(*names: str) -> list[FeatureTable]:
    changed = {"max_ids": LONGEST}
    kinds = [(name, _every_kind()[name].to_dict()) for name in names]
    return [FeatureTable(**{**kind, **changed, "name": f"list {name}"}) for name, kind in kinds]


class Pair:
    """The same weights as TorchRec looks them up, and as a served model."""

    def __init__(
        self, features: list[FeatureTable], bits: int, averaged: Sequence[str] = (), weighted: Sequence[str] = ()
    ) -> None:
        self.features = features = [replace(f, weighted=f.name in (*averaged, *weighted)) for f in features]
        self.embeddings = CompositionalEmbeddings(features, DIM, device="cpu", seed=1)
        network = DenseNetwork(
            num_dense=DENSE,
            num_vectors=self.embeddings.num_vectors,
            dim=DIM,
            bottom=[16, DIM],
            top=[16, 1],
            generator=torch.Generator().manual_seed(0),
        )
        weights = {name.split(".")[-2]: weight.detach() for name, weight in self.embeddings.named_parameters()}
        tables = {
            name: StoredRows(weight, weight.shape[1], 32) if bits == 32 else pack(weight, bits)
            for name, weight in weights.items()
        }
        if bits != 32:  # TorchRec's tables hold what is left of the values
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(tables[name].expand())
        self.trained = DLRM(self.embeddings, network)
        self.averaged, self.weighted = averaged, weighted
        self.served = ServedModel(
            features, tables, network, num_dense=DENSE, logit_offset=OFFSET, averaged=averaged, weighted=weighted
        )

    @torch.no_grad()
    def expected(self, inputs: Inputs) -> Tensor:
        columns = iter(inputs.ids.unbind(1))
        ids = [inputs.lists[f.name] if f.max_ids > 1 else next(columns)[:, None] for f in self.features]
        kjt = KeyedJaggedTensor(
            keys=[feature.name for feature in self.features],
            values=torch.cat([ids_BL[ids_BL != PADDING] for ids_BL in ids]),
            lengths=torch.cat([(ids_BL != PADDING).sum(1).int() for ids_BL in ids]),
            weights=torch.cat([self._weights(f.name, i, inputs) for f, i in zip(self.features, ids, strict=True)]),
            stride=len(inputs.dense),
        )
        return (self.trained(inputs.dense, kjt) + OFFSET).sigmoid()

    def _weights(self, name: str, ids_BL: Tensor, inputs: Inputs) -> Tensor:
        there_BL = ids_BL != PADDING
        weights_BL = inputs.weights.get(name, torch.ones(ids_BL.shape))
        if name in self.averaged:
            weights_BL = weights_BL / there_BL.sum(1, keepdim=True)
        return weights_BL[there_BL]

    def draw(self, rows: int, longest: int = LONGEST) -> Inputs:
        draw = torch.Generator().manual_seed(rows + longest)
        ids = [torch.randint(0, f.rows, (rows, 1), generator=draw) for f in self.features if f.max_ids == 1]
        lists = {}
        for feature in self.features:
            if feature.max_ids > 1:
                ids_BL = torch.randint(0, feature.rows, (rows, longest), generator=draw)
                lengths = torch.randint(0, longest + 1, (rows, 1), generator=draw)
                lists[feature.name] = ids_BL.masked_fill_(torch.arange(longest) >= lengths, PADDING)
        dense = torch.randn(rows, DENSE, generator=draw)
        weights = {name: torch.randn(rows, longest, generator=draw) for name in self.weighted}
        return Inputs(dense, torch.cat(ids, 1) if ids else torch.empty(rows, 0, dtype=torch.int64), lists, weights)


def test_every_kind_of_table_in_one_program_scores_as_the_trained_model_does_for_any_batch():
    pair = Pair(list(_every_kind().values()), 32)
    program = to_program(pair.served).module()
    for rows in (1, 7, 1000):
        inputs = pair.draw(rows)
        assert torch.allclose(program(*inputs.arguments()), pair.expected(inputs), rtol=0, atol=ROUNDING)
        assert torch.equal(pair.served(*inputs.arguments()), program(*inputs.arguments()))


KINDS_OF_LISTS = ("full", "qr-mult-quotient", "head-mult", "crt-features", "hash", "qr-path-remainder")


@pytest.mark.parametrize(("bits", "kinds"), [(32, 6), (8, 3)])
def test_lists_of_any_length_are_summed_and_an_empty_one_is_nothing(tmp_path: Path, bits: int, kinds: int):
    first, *others = _lists(*KINDS_OF_LISTS[:kinds])
    pair = Pair([first, _every_kind()["kway-features"], *others], bits)
    torch.export.save(to_program(pair.served), tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    for rows, longest in ((1, 1), (7, 2), (1000, 3)):
        inputs = pair.draw(rows, longest)
        assert torch.allclose(program(*inputs.arguments()), pair.expected(inputs), rtol=0, atol=ROUNDING)
    nothing = Inputs(inputs.dense, inputs.ids, {name: torch.full((1000, 1), PADDING) for name in inputs.lists})
    assert torch.allclose(program(*nothing.arguments()), pair.expected(nothing), rtol=0, atol=ROUNDING)
    backwards = dict(reversed(list(inputs.lists.items())))
    assert torch.equal(program(inputs.dense, inputs.ids, backwards), program(*inputs.arguments()))


def test_lists_are_weighted_and_averaged():
    features = [*_lists(*KINDS_OF_LISTS), _every_kind()["hash"]]
    names = [feature.name for feature in features[:-1]]
    pair = Pair(features, 32, averaged=names[::2], weighted=names[1:4])
    program = to_program(pair.served).module()
    for rows, longest in ((1, 1), (7, 2), (1000, 3)):
        inputs = pair.draw(rows, longest)
        assert torch.allclose(program(*inputs.arguments()), pair.expected(inputs), rtol=0, atol=ROUNDING)
    nothing = replace(inputs, lists={name: torch.full((1000, 3), PADDING) for name in inputs.lists})
    assert torch.allclose(program(*nothing.arguments()), pair.expected(nothing), rtol=0, atol=ROUNDING)


def test_ids_that_have_no_row_and_batches_that_do_not_fit_are_refused_by_the_program():
    pair = Pair([_every_kind()["hash"], *_lists("hash")], 32)
    program = to_program(pair.served).module()
    inputs = pair.draw(3)
    for wrong in (-1, 98):  # the feature has 98 ids; modulo the table's rows each of these would have one
        with pytest.raises(RuntimeError, match="an id is below 0, or not below the rows of its feature"):
            program(inputs.dense, inputs.ids.clone().fill_(wrong), inputs.lists)
    for wrong in (-2, 98):
        with pytest.raises(RuntimeError, match="list hash: an id is below -1, or not below the feature's 98 rows"):
            program(inputs.dense, inputs.ids, {"list hash": torch.full((3, 2), wrong)})
    with pytest.raises(AssertionError, match="size"):
        program(inputs.dense[:2], inputs.ids, inputs.lists)
    with pytest.raises(AssertionError, match="size"):
        program(*pair.draw(3, LONGEST + 1).arguments())


def test_a_model_of_nothing_but_lists_and_no_dense_features_is_served_too(tmp_path: Path):
    lists = _lists("full", "double-hash")
    tables = {t.name: StoredRows(torch.randn(t.rows, DIM), DIM, 32) for feature in lists for t in feature.tables(DIM)}
    network = DenseNetwork(num_dense=0, num_vectors=2, dim=DIM, bottom=[DIM], top=[1])
    model = ServedModel(lists, tables, network, num_dense=0)
    model.register_buffer("nothing", torch.zeros(31)[:0])  # as edges of buckets that were read from a file
    write_program(to_program(model), tmp_path / "model.pt2", {})
    program = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (1, 5):
        ids = {feature.name: torch.full((rows, 1), PADDING) for feature in lists}
        found = program(torch.empty(rows, 0), torch.empty(rows, 0, dtype=torch.int64), ids)
        assert found.shape == (rows,)
        assert bool(torch.isfinite(found).all())
