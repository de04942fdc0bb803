from pathlib import Path

import pytest

from dlrmctl.console.pictures import check_picture, picture
from dlrmctl.errors import UserError


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_picture_is_of_the_kind_its_name_says_and_the_same_each_time(tmp_path: Path, suffix: str, begins: bytes):
    for name in ("a", "b"):
        with picture(tmp_path / (name + suffix)) as figure:
            figure.subplots().plot([1, 2, 3])
    first, second = ((tmp_path / (name + suffix)).read_bytes() for name in ("a", "b"))
    assert first.startswith(begins)
    assert first == second


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path):
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        check_picture(tmp_path / "curve.bmp")
    with pytest.raises(UserError, match="no such directory"):
        check_picture(tmp_path / "nowhere" / "curve.png")
