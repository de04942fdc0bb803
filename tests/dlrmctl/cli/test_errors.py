"""Mistakes of users: one line, a hint if there is a next step, exit status 2, and no lost data."""

import gzip
import json
import os
import resource
import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.dlrmctl.commands import SMALL, Done, in_process, run, run_as_ranks, start, wait_for_checkpoint


def criteo_lines(count: int, seed: int = 0) -> str:
    """Rows in Criteo's format, made up."""
    lines = []
    for i in range(count):
        mixed = (i * 2654435761 + seed) % 2**32
        numbers = [str((mixed >> k) % 50) if (i + k) % 5 else "" for k in range(13)]
        values = [f"{(mixed >> k) % 7 + 1000 * k:08x}" if (i + k) % 11 else "" for k in range(26)]
        lines.append("\t".join([str(int(mixed % 4 == 0)), *numbers, *values]))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "train.txt"
    path.write_text(criteo_lines(3000))
    return path


@pytest.fixture(scope="module")
def store(raw: Path) -> Path:
    path = raw.parent / "store"
    done = in_process("prepare", "criteo", raw, "-o", path)
    assert done.status == 0, done.err
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run."""
    path = tmp_path_factory.mktemp("finished") / "run"
    done = in_process("train", *SMALL, "--synthetic-rows", "5000", "--run-dir", path)
    assert done.status == 0, done.err
    return path


def _refused(done: Done, *words: str) -> None:
    """One error line with all the words, at most one hint, nothing else that looks like trouble."""
    assert done.status == 2, done.err
    lines = done.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    for word in words:
        assert word in errors[0] + "\n" + "\n".join(line for line in lines if line.startswith("hint: ")), done.err
    assert "Traceback" not in done.err
    assert done.out == ""


# Raw data.


def test_a_missing_file(tmp_path: Path):
    _refused(in_process("prepare", "criteo", tmp_path / "nothing.txt", "-o", tmp_path / "s"), "nothing.txt", "no such")


def test_an_empty_file(tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    _refused(in_process("prepare", "criteo", tmp_path / "empty.txt", "-o", tmp_path / "s"), "empty.txt", "empty")


def test_a_directory_for_a_file(tmp_path: Path):
    _refused(in_process("prepare", "criteo", tmp_path, "-o", tmp_path / "s"), "a directory, expected a file")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (lambda f: f[:30], ["fields, expected 40"]),
        (lambda f: [*f, "extra"], ["41 fields, expected 40"]),
        (lambda f: [f[0], "3.5", *f[2:]], ["3.5"]),
        (lambda f: [*f[:20], "zzzz", *f[21:]], ["zzzz"]),
        (lambda f: ["2", *f[1:]], ["label"]),
        (lambda f: [*f[:20], "\xff\xfe", *f[21:]], ["UTF-8"]),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path, line, words: list[str]):
    lines = criteo_lines(50).splitlines()
    lines[7] = "\t".join(line(lines[7].split("\t")))
    path = tmp_path / "day_3.tsv"
    path.write_bytes("\n".join([*lines, ""]).encode("latin-1"))
    done = in_process("prepare", "criteo", path, "-o", tmp_path / "s", "--max-bad-rows", "0")
    _refused(done, "day_3.tsv, line 8", *words)
    assert not (tmp_path / "s").exists()
    # Allowed, it is counted and shown instead.
    done = in_process("prepare", "criteo", path, "-o", tmp_path / "s", "--max-bad-rows", "1", "--json")
    assert done.status == 0, done.err
    report = done.json()
    assert report["rows"] == 49
    assert sum(report["rejected"].values()) == 1


def test_a_truncated_gz(tmp_path: Path):
    whole = gzip.compress(criteo_lines(2000).encode())
    (tmp_path / "day_0.gz").write_bytes(whole[: len(whole) // 2])
    _refused(in_process("prepare", "criteo", tmp_path / "day_0.gz", "-o", tmp_path / "s"), "day_0.gz")
    assert not (tmp_path / "s").exists()


def test_an_existing_output(raw: Path, store: Path):
    before = (store / "manifest.json").read_bytes()
    _refused(in_process("prepare", "criteo", raw, "-o", store), str(store), "exists")
    assert (store / "manifest.json").read_bytes() == before


# Stores.


def test_no_data_says_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DLRMCTL_DATA", raising=False)
    done = in_process("train", "--run-dir", tmp_path / "run")
    _refused(done, "no prepared criteo data", "dlrmctl prepare criteo", "--data DIR", "--dataset synthetic")
    assert not (tmp_path / "run").exists()


def test_a_store_that_is_not_there(tmp_path: Path):
    _refused(in_process("train", "--data", tmp_path / "gone", "--run-dir", tmp_path / "run"), "gone")


@pytest.mark.parametrize("command", [["train", "--data"], ["plan", "--data"], ["data", "show"]], ids=" ".join)
def test_a_mistyped_store_is_named_as_typed_with_the_one_that_is_meant(
    store: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
):
    monkeypatch.chdir(store.parent)
    _refused(in_process(*command, "stroe"), "error: stroe: no such directory", "did you mean store?")


def test_a_store_of_another_version(store: Path, tmp_path: Path):
    copy = shutil.copytree(store, tmp_path / "store")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["format"] = "dlrmctl-store/99"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    _refused(in_process("train", "--data", copy, "--run-dir", tmp_path / "run"), "dlrmctl-store/99")


def _largest_file(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_store_cut_short(store: Path, tmp_path: Path):
    copy = shutil.copytree(store, tmp_path / "store")
    data = _largest_file(copy)
    os.truncate(data, data.stat().st_size - 100)
    _refused(in_process("train", "--data", copy, "--run-dir", tmp_path / "run"), data.name)


def test_a_damaged_test_split_is_found_before_training(store: Path, tmp_path: Path):
    copy = shutil.copytree(store, tmp_path / "store")
    _changed(copy / "test.bin")
    done = in_process("train", "--data", copy, "--run-dir", tmp_path / "run", "--batch-size", "64")
    _refused(done, "test.bin", "block")
    assert not (tmp_path / "run").exists()


def test_a_store_with_a_changed_block(store: Path, tmp_path: Path):
    copy = shutil.copytree(store, tmp_path / "store")
    data = _largest_file(copy)
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 1
    data.write_bytes(content)
    done = in_process("train", "--data", copy, "--run-dir", tmp_path / "run", "--batch-size", "64")
    assert done.status == 2, done.err
    [error] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert data.name in error
    assert "block" in error
    assert "Traceback" not in done.err


# Settings.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-sise", "3"], ["--batch-sise", "--batch-size"]),
        (["--batch-size", "many"], ["--batch-size = 'many' is not a whole number"]),
        (["--epochs", "0"], ["--epochs = 0 must be at least 1"]),
        (["--dim", "32"], ["ends in 16, but embeddings.dim = 32", "--bottom-mlp 512-256-64-32"]),
        (["--nproc", "0"], ["--nproc = 0 must be at least 1"]),
        (["--nproc", "3", "--batch-size", "1000"], ["cannot be split equally over 3 ranks", "--batch-size 1002"]),
        (["--nproc", "two"], ["two"]),
        (["extra"], ["extra"]),
        (["--config", "a.toml"], ["a.toml: no such file"]),
        (["--resume", "nowhere"], ["nowhere: no such run directory"]),
        (["--resume", "nowhere", "--config", "a.toml"], ["--resume nowhere and --config contradict"]),
    ],
)
def test_wrong_arguments(arguments: list[str], words: list[str]):
    _refused(in_process("train", "--dataset", "synthetic", *arguments), *words)


@pytest.mark.parametrize("arguments", [[], ["prepare"], ["bench"]])
def test_a_group_without_a_command_shows_its_help(arguments: list[str]):
    done = in_process(*arguments)
    assert "Usage" in done.out
    assert "error" not in done.err


def test_paths_are_not_markup(raw: Path, tmp_path: Path):
    done = in_process("prepare", "criteo", raw, "-o", tmp_path / "x[red]y")
    assert done.status == 0, done.err
    assert "x[red]y" in done.out
    done = in_process("train", *SMALL, "--synthetic-rows", "1000", "--run-dir", tmp_path / "[/x]z")
    assert done.status == 0, done.err
    assert "[/x]z" in done.out


def test_a_network_that_does_not_fit_is_refused():
    done = in_process("train", "--dataset", "synthetic", "--top-mlp", "999999999-1")
    _refused(done, "the MLPs 512-256-64-16 and 999999999-1 have", "smaller --bottom-mlp or --top-mlp")


def test_unknown_command():
    _refused(in_process("trian"), "trian")


def test_unreadable_toml(tmp_path: Path):
    (tmp_path / "run.toml").write_text("[train\nseed = 1\n")
    _refused(in_process("train", "--config", tmp_path / "run.toml"), "run.toml: not valid TOML", "line 1")


def test_an_existing_run_directory(finished: Path):
    _refused(in_process("train", *SMALL, "--run-dir", finished), "already exists", f"--resume {finished}")


def test_cuda_without_a_device(tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    done = in_process("train", *SMALL, "--device", "cuda", "--run-dir", tmp_path / "run")
    _refused(done, "train.device = cuda", "--device cpu")


def test_a_batch_larger_than_the_data(tmp_path: Path):
    done = in_process("train", *SMALL, "--batch-size", "4096", "--synthetic-rows", "1000", "--run-dir", tmp_path / "r")
    _refused(done, "1,000 examples", "4,096")


def test_tables_that_do_not_fit_are_refused_before_they_are_allocated(raw: Path, tmp_path: Path):
    big = tmp_path / "store"
    done = in_process("prepare", "criteo", raw, "-o", big, "--ids", "hash", "--hash-rows", str(2**32))
    assert done.status == 0, done.err
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = in_process(
        "train", "--data", big, "--embedding", "full", "--run-dir", tmp_path / "run", "--batch-size", "64"
    )
    _refused(done, "GiB", "--embedding qr")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: less than a GiB
    assert not (tmp_path / "run").exists()


# Checkpoints.


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dim", "16", "--bottom-mlp", "16-16"], ["model.bottom_mlp"]),
        (["--operation", "add"], ["was trained with embeddings.operation = mult, not add"]),
        (["--batch-size", "128"], ["train.batch_size = 256"]),
        (["--dense-optimizer", "adamw"], ["optim.dense_optimizer = shampoo"]),
        (["--synthetic-rows", "6000"], ["data.synthetic_rows = 5000"]),
    ],
)
def test_resume_with_another_shape(finished: Path, flags: list[str], words: list[str]):
    _refused(in_process("train", "--resume", finished, *flags), *words)


def _newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))


def _changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: os.truncate(next(c.glob("*.distcp")), 1000), ["1000 bytes, expected"]),
        (lambda c: next(c.glob("*.distcp")).unlink(), ["is missing"]),
        (lambda c: _changed(next(c.glob("*.distcp"))), ["does not match its checksum"]),
        (lambda c: _changed(c / ".metadata"), [".metadata does not match its checksum"]),
        (lambda c: (c / "complete.json").unlink(), ["complete.json is missing"]),
        (lambda c: (c / "complete.json").write_text("{"), ["not JSON"]),
    ],
)
def test_resume_from_a_damaged_checkpoint(finished: Path, tmp_path: Path, damage, words: list[str]):
    copy = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    newest = _newest(copy)
    damage(newest)
    _refused(in_process("train", "--resume", copy), newest.name, f"remove {newest.name}", *words)


def _pickle_of_call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls module.name(argument) when it is loaded."""
    import pickle

    def text(value: str) -> bytes:
        encoded = value.encode()
        return pickle.SHORT_BINUNICODE + bytes([len(encoded)]) + encoded

    call = text(module) + text(name) + pickle.STACK_GLOBAL + text(argument) + pickle.TUPLE1 + pickle.REDUCE
    return pickle.PROTO + bytes([4]) + call + pickle.STOP


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posix", "system"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),  # a dotted name walks through an allowed module
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch", "os.system"),
    ],
)
def test_metadata_that_would_run_code_is_refused(tmp_path: Path, module: str, name: str):
    from dlrmctl.errors import UserError
    from dlrmctl.rundir.tensor_files import stored_tensors

    (tmp_path / ".metadata").write_bytes(_pickle_of_call(module, name, f"touch {tmp_path}/ran"))
    with pytest.raises(UserError, match=rf"refers to {module}\.{name}"):
        stored_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_data_whose_ids_mean_something_else_is_not_scored(raw: Path, store: Path, tmp_path: Path):
    done = in_process("train", "--data", store, *SMALL[2:], "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    (tmp_path / "other.txt").write_text(criteo_lines(3000, seed=7))
    assert in_process("prepare", "criteo", tmp_path / "other.txt", "-o", tmp_path / "other").status == 0
    _refused(in_process("evaluate", tmp_path / "run", "--data", tmp_path / "other"), "other ids", "--data")


def test_a_checkpoint_that_is_not_there(finished: Path):
    _refused(in_process("evaluate", finished, "--checkpoint", "step-1"), "no checkpoint 'step-1'", "best, last")
    _refused(in_process("evaluate", finished, "--split", "tset"), "--split = 'tset'", "'test'")


def test_no_space_left_while_saving_keeps_the_last_good_checkpoint(tmp_path: Path):
    path = tmp_path / "run"
    arguments = [*SMALL, "--synthetic-rows", "10000", "--checkpoint-every", "8", "--run-dir", path]
    process = start("train", *arguments, cwd=tmp_path)
    wait_for_checkpoint(path, process)
    # A limit on the size of files makes the write itself fail.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    out, err = process.communicate(timeout=200)
    done = Done(process.returncode, out, _only_messages(err))
    _refused(done, "would exceed the limit on file sizes", "is kept and can be resumed", "ulimit -f")
    assert not list(path.glob("checkpoints/*.partial"))
    done = in_process("train", "--resume", path)
    assert done.status == 0, done.err


def _only_messages(err: str) -> str:
    return "\n".join(line for line in err.splitlines() if line.startswith(("error:", "hint:", "Traceback")))


# Ranks.


def test_a_port_in_use(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        rank = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = run("train", *SMALL, "--run-dir", tmp_path / "run", cwd=tmp_path, **rank)
    _refused(done, f"MASTER_PORT = {port} is in use")


_HERE = {"RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "x"}, ["RANK = 'x'"]),
        ({"RANK": "0"}, ["but MASTER_ADDR is not", "torchrun"]),
        (_HERE, ["but MASTER_PORT is not", "torchrun"]),
        (_HERE | {"MASTER_PORT": "29k"}, ["MASTER_PORT = '29k' in the environment is not a port"]),
        (_HERE | {"MASTER_PORT": "65536"}, ["MASTER_PORT = '65536' in the environment is not a port"]),
    ],
)
def test_ranks_that_do_not_add_up_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: list[str]
):
    for name, value in {"WORLD_SIZE": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    _refused(in_process("train", *SMALL, "--run-dir", tmp_path / "run"), *words)


def test_an_error_inside_ranks_is_shown_once(finished: Path):
    done = run_as_ranks(2, "train", "--resume", finished, "--operation", "add", cwd=finished.parent)
    _refused(done, "embeddings.operation = mult")


def test_a_rank_that_is_killed_is_named(tmp_path: Path):
    path = tmp_path / "run"
    arguments = [*SMALL, "--synthetic-rows", "2000000", "--checkpoint-every", "20", "--run-dir", path, "--nproc", "2"]
    process = start("train", *arguments, cwd=tmp_path)
    wait_for_checkpoint(path, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGKILL
    assert "error: rank 1 was ended by SIGKILL" in err
    assert "Traceback" not in err
