"""Hints for mistyped commands, options, values and files."""

from pathlib import Path

import pytest

from tests.data.criteo_files import make_rows
from tests.dlrmctl.commands import in_process

SYNTHETIC = "train --dataset synthetic"
SCHEMA = 'label = "rating"\nsparse = ["user", "tags"]\n[columns.tags]\nmax_ids = 2\n'
FILES = {
    "batch.toml": "batch_size = 512\n",
    "lr.toml": "[train]\nlr = 0.1\n",
    "wrong-section.toml": "[train]\ndim = 8\n",
    "optimizer.toml": "[optimizer]\ndense_lr = 0.1\n",
    "store.toml": '[data]\ndataset = "clicks"\n',
    "s.toml": SCHEMA,
    "unknown.toml": SCHEMA.replace("max_ids", "max_id"),
    "top.toml": SCHEMA + "[target]\n",
    "ratings.csv": "user,tags,rating\n" + "ann,a|b,4\n" * 30,
    "lists.csv": "user,tags,rating\n" + "ann,a|b|c,1\n" * 30,
    "header.csv": "user,tags,rating\n",
    "bad.csv": "user,tags,rating\n" + "ann,a,1\nbob,b,0\n" * 20 + "ann\n",
    "kaggle.csv": "Id,Label," + ",".join(f"c{i}" for i in range(39)) + "\n" + "1,0" + ",7" * 39 + "\n",
    "rows.jsonl": '{"user": "ann", "rating": 1}\n',
    "runs/first/run.toml": "",
    "runs/first/checkpoints/step-7/complete.json": "{}",
    "store/train.bin": "",
    "store/manifest.json": "{}",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (directory / "dac").mkdir()
    rows = "".join("\t".join(row) + "\n" for row in make_rows(300))
    (directory / "dac" / "train.txt").write_text(rows)
    (directory / "dac" / "readme.txt").write_text("Criteo's data.")
    (directory / "bad.txt").write_text("a\tb\n" * 200 + rows)
    return directory


@pytest.mark.parametrize(
    ("command", "error", "hint"),
    [
        # Options.
        ("train --lr 0.1", "no such option: --lr", "did you mean --dense-lr, --sparse-lr or --qr-lr?"),
        ("train --learning-rate 0.1", "--learning-rate", "--dense-lr, --sparse-lr or --qr-lr"),
        ("train --batch_size 3", "--batch_size", "did you mean --batch-size?"),
        ("train --epoch 3", "--epoch", "--epochs"),
        ("train --gpus 2", "--gpus", "did you mean --nproc?"),
        ("train --output x", "--output", "did you mean --run-dir?"),
        ("prepare criteo a --output x", "--output", "did you mean --out?"),
        ("train --optimizer adam", "--optimizer", "did you mean --dense-optimizer?"),
        ("train --use-gpu", "--use-gpu", "did you mean --device cuda?"),
        ("train --arch-mlp-bot 512-16", "--arch-mlp-bot", "did you mean --bottom-mlp?"),
        ("train --data-path x", "--data-path", "did you mean --data?"),
        ("evaluate r --epochs 3", "--epochs", "it is an option of dlrmctl train"),
        ("train --quiet", "--quiet", "dlrmctl train --help lists the options"),
        # Commands.
        ("trian", "no such command: dlrmctl trian", "did you mean `dlrmctl train`?"),
        ("fit", "dlrmctl fit", "`dlrmctl train`"),
        ("compress r", "dlrmctl compress", "`dlrmctl compress-embeddings`"),
        ("show d", "dlrmctl show", "`dlrmctl data show`"),
        ("help train", "dlrmctl help", "`dlrmctl train --help`"),
        ("bench speed", "dlrmctl bench speed", "dlrmctl bench --help lists the commands"),
        # Values of settings.
        (f"{SYNTHETIC} --device gpu", "--device = 'gpu' must be one of auto, cpu, cuda", "did you mean 'cuda'?"),
        (f"{SYNTHETIC} --precision float16", "--precision = 'float16'", "did you mean 'bf16'?"),
        (f"{SYNTHETIC} --dense-optimizer adam", "--dense-optimizer = 'adam'", "did you mean 'adamw'?"),
        (f"{SYNTHETIC} --sharding rw", "--sharding = 'rw'", "did you mean 'row_wise'?"),
        ("train --dataset random", "data.dataset = 'random'", "did you mean 'synthetic'?"),
        ("train --dataset clicks", "data.dataset = 'clicks'", "use --data DIR for your own data"),
        ("train --dataset synthetic --data store", "contradict", "omit --dataset or --data"),
        (f"{SYNTHETIC} --bottom-mlp 512-256", "512-256 ends in 256", "--bottom-mlp 512-256-16 --dim 16, or --dim 256"),
        (f"{SYNTHETIC} --bottom-mlp 512,256,16", "'512,256,16'", "did you mean 512-256-16?"),
        (f"{SYNTHETIC} --batch-size 2,048", "'2,048' is not a whole number", "did you mean 2048?"),
        (f"{SYNTHETIC} --dense-lr 0,01", "'0,01' is not a number", "did you mean 0.01?"),
        (f"{SYNTHETIC} --batch-size 10M", "does not fit in memory", "a smaller --batch-size, such as "),
        # Settings files.
        ("train --config batch.toml", "batch.toml: batch_size is outside its section", "move it to [train]"),
        ("train --config lr.toml", "train.lr is not a setting", "'dense_lr' or 'sparse_lr' or 'qr_lr'"),
        ("train --config wrong-section.toml", "train.dim is in the wrong section", "move it to [embeddings]"),
        ("train --config optimizer.toml", "[optimizer] is not a section", "[optim]"),
        ("train --config store.toml", "data.dataset = 'clicks'", "--data DIR"),
        # Paths.
        ("prepare criteo a.txt -o https://b.org/store", "web servers are only read from", "s3://, gs:// or sftp://"),
        ("daily s3://b/monday -o w", "only files on this machine", "aws s3 cp s3://b/monday ."),
        ("train --data s3://key:secret@b/store", "a URL with credentials would be recorded", "configuration"),
        ("train --dataset synthetic --cache-size 10MiB", "must be at least 64MiB", "--cache-size 64MiB"),
        ("bench data --data gs://b/store", "only files on this machine", "gcloud storage cp"),
        ("train --data=hdfs://b/store", "only files on this machine", "hdfs dfs -get"),
        (
            "predict runs/first rows.csv -o https://x.org/p.csv",
            "web servers are only read from",
            "s3://, gs:// or sftp://",
        ),
        ("export runs/first -o s3://b/model.dlrm", "only be written on this machine", "copy it then"),
        ("runs abfs://b", "only files on this machine", "mount it"),
        ("runs s3://b/runs", "runs are kept on a file system", "mounted here"),
        ("evaluate sftp://host/run", "runs are kept on a file system", "mounted here"),
        ("train --run-dir=gs://b/run", "runs are kept on a file system", "mounted here"),
        ("evaluate file:///runs/first", "a URL, expected a path", "/runs/first"),
        (
            "predict dac/train.txt runs/first -o p.csv",
            "is not a run directory, but runs/first is",
            "predict runs/first ",
        ),
        ("evaluate store", "is not a run directory", "dlrmctl train --data store"),
        ("evaluate runs", "is not a run directory", "it contains the runs runs/first"),
        ("evaluate runs/frist", "no such run directory", "did you mean runs/first?"),
        ("evaluate runs/first/checkpoints/step-7", "is not a run", "runs/first --checkpoint step-7"),
        ("train --data runs/first", "a run, expected a store", "that `prepare` wrote"),
        # Raw data.
        ("prepare criteo ratings.csv -o out", "a table of 3 columns", "prepare --schema FILE.toml"),
        ("prepare criteo rows.jsonl -o out", "JSON lines", "prepare --schema FILE.toml"),
        ("prepare criteo kaggle.csv -o out", "Criteo's rows that were converted", "tail -n +2 kaggle.csv | tr ','"),
        ("prepare ratings.csv -o out", "'ratings.csv' is not a format", "prepare --schema FILE.toml ratings.csv"),
        ("prepare dac/train.txt -o out", "is not a format", "dlrmctl prepare criteo dac/train.txt -o DIR"),
        ("prepare criteo runs -o out", "a directory, expected a file, or train.txt or days in it", "it"),
        ("prepare --schema s.toml ratings.csv -o out", "line 2: rating is '4', expected 0 or 1", "label_positive ="),
        ("prepare --schema s.toml lists.csv -o out", "line 2: tags is", "truncate = 'first'"),
        ("prepare --schema s.toml header.csv -o out", "no good row", "each line below it is a row"),
        ("prepare --schema s.toml bad.csv -o out --max-bad-rows 0", "1 field, expected 3", "--max-bad-rows N"),
        ("prepare criteo bad.txt -o out", "bad.txt, line 1: 2 fields, expected 40", "--max-bad-rows N"),
        (
            "prepare --schema unknown.toml lists.csv -o out",
            "columns.tags.max_id",
            "did you mean 'max_ids'? the keys are",
        ),
        ("prepare --schema top.toml lists.csv -o out", "target is not a key", "the keys are label, label_positive"),
        ("prepare criteo dac -o out --name a/b", "'a/b' cannot be the name of a store", "letters, digits"),
        ("prepare criteo dac -o out --name synthetic", "reserved for generated data", "another name"),
    ],
)
def test_a_mistake_gets_its_hint(command: str, error: str, hint: str, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    done = in_process(*command.split())
    assert done.status == 2, done.err
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    hints = [line for line in done.err.splitlines() if line.startswith("hint: ")]
    assert len(errors) == len(hints) == 1, done.err
    assert error in errors[0]
    assert hint in hints[0]
    assert not done.out
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--embedding", "QR", "--epochs", "1", "--decay", "Cosine", "--sharding", "TABLE-WISE", "--device", "CPU"],
        ["--batch-size", "2k", "--synthetic-rows", "1e6", "--max-steps", "1.5k", "--dataset", "Synthetic"],
    ],
)
def test_capitals_and_short_numbers_are_taken(arguments: list[str]):
    plain = {"QR": "qr", "Cosine": "cosine", "TABLE-WISE": "table_wise", "CPU": "cpu", "Synthetic": "synthetic"}
    plain |= {"2k": "2000", "1e6": "1000000", "1.5k": "1500", "1": "1"}
    from dlrmctl.settings.config import resolve

    names = [flag.removeprefix("--").replace("-", "_") for flag in arguments[::2]]
    assert resolve({}, dict(zip(names, arguments[1::2], strict=True))) == resolve(
        {}, dict(zip(names, [plain[value] for value in arguments[1::2]], strict=True))
    )


def test_the_directory_of_criteos_files_is_taken(place: Path, tmp_path: Path):
    done = in_process("prepare", "CRITEO", place / "dac", "-o", tmp_path / "store", "--json")
    assert done.status == 0, done.err
    assert [source["name"] for source in done.json()["sources"]] == ["train.txt"]
    assert done.json()["name"] == "store"


def test_version_and_short_help():
    version = in_process("--version")
    assert version.status == 0
    assert version.out.startswith("dlrmctl ")
    for command in ([], ["train"], ["data"], ["data", "show"], ["bench", "step"]):
        assert in_process(*command, "-h").out == in_process(*command, "--help").out != ""


@pytest.mark.parametrize("command", [["train"], ["compress-embeddings"], ["plan"]], ids=" ".join)
def test_help_on_80_columns_cuts_no_option_and_no_choice(command: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = in_process(*command, "--help").out
    assert "…" not in text
    for word in ("--embedding", "--keep-checkpoints", "double-hash", "schedule-free", "sgd"):
        assert command != ["train"] or word in text
    assert command != ["compress-embeddings"] or "uniform" in text
