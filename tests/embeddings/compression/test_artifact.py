import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlrmctl.embeddings.compression.artifact import Artifact, Writer
from dlrmctl.embeddings.compression.fits.methods import Method
from dlrmctl.embeddings.compression.rules.rows import Compressed
from tests.embeddings.compression.tables import table_rows


def _tables() -> dict[str, Compressed]:
    names = {"cat_1": "int8", "cat_2@q": "head2%+rq2x32", "cat_3": "pca4-int4", "cat_4": "qr-mult8"}
    return {name: Method.parse(method).fit(table_rows(600)) for name, method in names.items()}


def _write(path: Path, tables: dict[str, Compressed], **kwargs) -> None:
    with Writer(path, source={"checkpoint": "step-7"}, **kwargs) as writer:
        writer.add_tensors("dense.safetensors", {"top.weight": torch.ones(3, 4)})
        for name, table in tables.items():
            writer.add(name, table, {"method": "some"})


@pytest.mark.parametrize("file_bytes", [1, 2**14, 2**28])
def test_tables_come_back_bit_by_bit(tmp_path: Path, file_bytes: int):
    tables = _tables()
    _write(tmp_path / "out", tables, file_bytes=file_bytes)
    artifact = Artifact(tmp_path / "out")
    assert artifact.source == {"checkpoint": "step-7"}
    assert list(artifact.tables) == list(tables)
    for name, table in tables.items():
        again = artifact.read(name)
        assert again.spec() == table.spec()
        assert all(torch.equal(part, again.parts()[key]) for key, part in table.parts().items())
        assert artifact.tables[name]["notes"] == {"method": "some"}
    assert torch.equal(artifact.read_tensors("dense.safetensors")["top.weight"], torch.ones(3, 4))


@pytest.mark.parametrize("file_bytes", [1, 2**28])
def test_bytes_add_up_to_the_files(tmp_path: Path, file_bytes: int):
    tables = _tables()
    _write(tmp_path / "out", tables, file_bytes=file_bytes)
    artifact = Artifact(tmp_path / "out")
    found = artifact.file_bytes
    assert found.tensors == sum(table.num_bytes for table in tables.values()) + 3 * 4 * 4
    assert found.tensors == sum(entry["bytes"] for entry in artifact.tables.values()) + 3 * 4 * 4
    assert found.total == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


def test_an_error_leaves_nothing_behind(tmp_path: Path):
    def write_and_fail() -> None:
        with Writer(tmp_path / "out", source={}, file_bytes=1) as writer:
            writer.add("a", Method.parse("int8").fit(table_rows(10)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_called_partial_is_not_ours_to_remove(tmp_path: Path):
    (tmp_path / "out.partial").mkdir()
    _write(tmp_path / "out", _tables())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="already exists"):
        Writer(tmp_path / "out", source={})
    with Writer(tmp_path / "new", source={}) as writer:
        writer.add("a", Method.parse("int8").fit(table_rows(10)))
        with pytest.raises(ValueError, match="must be new"):
            writer.add("a", Method.parse("int8").fit(table_rows(10)))


def test_damage_is_found_before_use(tmp_path: Path):
    path = tmp_path / "out"
    _write(path, _tables())
    file = path / "tables-00000.safetensors"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 4
    for content, message in [
        (bytes(flipped), "tables-00000.safetensors does not match its checksum"),
        (whole[:-1], f"has {len(whole) - 1} bytes, expected {len(whole)}"),
    ]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Artifact(path)
    file.unlink()
    with pytest.raises(ValueError, match=r"tables-00000\.safetensors is missing"):
        Artifact(path)


def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path):
    path = tmp_path / "out"
    _write(path, _tables())
    manifest = path / "manifest.json"
    good = json.loads(manifest.read_text())

    def changed(change) -> None:
        copy = json.loads(json.dumps(good))
        change(copy)
        copy.pop("crc32", None)  # as earlier versions wrote it
        manifest.write_text(json.dumps(copy))

    changed(lambda m: m.update(format="dlrmctl-compressed/2"))
    with pytest.raises(ValueError, match=r"format 'dlrmctl-compressed/2', this version reads 'dlrmctl-compressed/1'"):
        Artifact(path)
    changed(lambda m: m["tables"]["cat_1"].update(rows=601))
    with pytest.raises(ValueError, match=r"cat_1 does not match manifest.json"):
        Artifact(path).read("cat_1")
    changed(lambda m: m["tables"]["cat_1"]["spec"].update(bits=4))
    with pytest.raises(ValueError, match="table cat_1: damaged table"):
        Artifact(path).read("cat_1")
    changed(lambda m: m["files"].update({"../dense.safetensors": m["files"]["dense.safetensors"]}))
    with pytest.raises(ValueError, match=r"'../dense.safetensors' is not the name of a table or file"):
        Artifact(path)
    manifest.write_text(json.dumps(good | {"source": {}}))
    with pytest.raises(ValueError, match=r"edited or damaged: manifest.json does not match its checksum"):
        Artifact(path)
    manifest.write_text('{"format": ')
    with pytest.raises(ValueError, match=r"damaged: manifest.json cannot be read"):
        Artifact(path)
    manifest.unlink()
    with pytest.raises(ValueError, match="has no compressed tables"):
        Artifact(path)
    manifest.write_text(json.dumps(good))
    with pytest.raises(ValueError, match="no table 'cat_9', only cat_1"):
        Artifact(path).read("cat_9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(files={}), r"tables\.cat_1\.file = 'tables-00000\.safetensors' is not among the files"),
        (lambda m: m.update(tables=[]), "tables must be an object"),
        (lambda m: m["tables"].update({"../cat_1": m["tables"]["cat_1"]}), r"'../cat_1' is not the name of a table"),
        (lambda m: m["tables"].update(cat_1=None), r"tables\.cat_1\. must be an object"),
        (lambda m: m["tables"]["cat_1"].update(rows="600"), r"tables\.cat_1\.rows must be a whole number"),
        (lambda m: m["tables"]["cat_1"].update(rows=-1), r"tables\.cat_1\.rows must be at least 0"),
        (lambda m: m["tables"]["cat_1"].update(spec=None), r"tables\.cat_1\.spec must be an object"),
        (lambda m: m["tables"]["cat_1"]["spec"].update(bits="8"), "must be one of 32, 16"),
        (lambda m: m["tables"]["cat_1"]["spec"].update(exponent=None), "its spec does not describe a table"),
        (lambda m: m["tables"]["cat_1"]["spec"].update(rule=["rows"]), "rule is both 'rows'"),
        (lambda m: m["tables"]["cat_1"]["spec"].pop("dim"), "'dim' is missing"),
        (lambda m: m["files"]["dense.safetensors"].update(bytes=1.5), "bytes must be a whole number"),
        (lambda m: m.pop("format"), "names no format"),
    ],
)
def test_an_entry_of_another_type_is_named(tmp_path: Path, change: Callable[[dict], None], message: str):
    _write(tmp_path / "out", {"cat_1": Method.parse("int8").fit(table_rows(600))})
    manifest = tmp_path / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    content.pop("crc32")
    change(content)
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Artifact(tmp_path / "out").read("cat_1")
