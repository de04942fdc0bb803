"""Amounts with units: bytes are never bits, and units are required."""

import pytest

from dlrmctl.errors import UserError
from dlrmctl.settings.amounts import bandwidth_of, rate_of, size_of


@pytest.mark.parametrize(
    ("text", "number"),
    [("80GiB", 80 * 2**30), ("80GB", 80e9), ("1.5 TiB", 1.5 * 2**40), ("80gB", 80e9), ("80Gi", 80 * 2**30), ("9B", 9)],
)
def test_sizes_are_bytes(text: str, number: float):
    assert size_of("--hbm", text) == number


@pytest.mark.parametrize(("text", "number"), [("25GB/s", 25e9), ("1.6TB/s", 1.6e12), ("25GiB/s", 25 * 2**30)])
def test_bandwidths_are_bytes_per_second(text: str, number: float):
    assert bandwidth_of("--intra-bw", text) == number


@pytest.mark.parametrize("text", ["60T", "60TFLOP/s", "60 TFLOPS", "6e13", "6e+13"])
def test_rates_are_operations_per_second(text: str):
    assert rate_of("--flops", text) == 60e12


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("200Gb/s", "25GB/s"),
        ("200gb/s", "25gB/s"),
        ("200Mb/s", "25MB/s"),
        ("1.6Tb/s", "0.2TB/s"),
        ("800kb/s", "100kB/s"),
        ("200Gbps", "25GB/s"),
        ("200Gbit/s", "25GB/s"),
        ("200GBit/s", "25GB/s"),
        ("200b/s", "25B/s"),
        ("25GBps", "25GB/s"),
        ("200G", "25GB/s if it is in bits"),
        ("25", "25GB/s?"),
    ],
)
def test_no_bandwidth_is_taken_for_another(text: str, hint: str):
    with pytest.raises(UserError) as refused:
        bandwidth_of("--inter-bw", text)
    assert f"--inter-bw = {text!r}" in refused.value.message
    assert hint in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("text", "hint"),
    [("80Gb", "10GB"), ("80Gib", "10GiB"), ("80Gbit", "10GB"), ("80", "80GiB?"), ("0.5", "0.5GiB?")],
)
def test_no_size_is_taken_for_another(text: str, hint: str):
    with pytest.raises(UserError) as refused:
        size_of("--hbm", text)
    assert f"--hbm = {text!r}" in refused.value.message
    assert hint in (refused.value.hint or "")


@pytest.mark.parametrize("text", ["eighty", "", "80XB", "80GB/s", "-5GiB", "0GiB", "0.2B", "1e400GB"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(UserError):
        size_of("--hbm", text)


def test_operations_without_a_unit_are_refused():
    with pytest.raises(UserError, match="--flops = '60'") as refused:
        rate_of("--flops", "60")
    assert refused.value.hint == "60TFLOP/s?"
