"""The result of `dlrmctl bench step` as tables."""

from typing import Any

from dlrmctl.bench.lists import BASE
from dlrmctl.bench.wording import counted, rate_text
from dlrmctl.console import bytes_text, output, print_table


def show_bench_step(result: dict[str, Any]) -> None:
    """The result for people."""
    environment = result["environment"]
    output.print(
        f"batch {result['settings']['train']['batch_size']:,}, {result['rows']:,} rows, {result['ranks']} x "
        f"{environment['device']}, {counted(environment['threads'], 'thread')}, {environment['processor']}"
    )
    _show_machine(result)
    _show_variants(result["variants"])
    parts, whole, above = result["parts_ms"], result["step_of_parts_ms"], result["variants"][BASE]["step_ms"]
    here, there = _milliseconds(whole["median"]), _milliseconds(above["median"])
    title = "parts of the step, base, ms, in rounds of their own"
    _show_parts(
        f"{title}, in which the whole step takes {here}, and {there} above",
        parts | {"whole step": whole},
        whole["median"],
    )
    floor = result["floor_parts_ms"]
    _show_parts("parts of its floor, ms", floor, sum(figures["median"] for figures in floor.values()))
    if result["communication_ms"]:
        print_table(
            "collectives under way, ms per step, traced; backward goes on meanwhile",
            ["", "ms"],
            [[name, f"{ms:.2f}"] for name, ms in result["communication_ms"].items()],
        )


def _show_machine(result: dict[str, Any]) -> None:
    limits = result["limits"]
    rows = [
        (f"{name}, GFLOP/s, threads {threads}", figures)
        for name, kind in (("sgemm", "sgemm_gflops"), ("bf16 gemm", "bf16_gemm_gflops"))
        for threads, figures in limits[kind].items()
    ]
    rows += [
        (f"{what}, GB/s", limits[f"{kind}_gigabytes_per_second"])
        for what, kind in (("copy", "copy"), ("rows read at random", "gather"), ("rows written at random", "scatter"))
    ]
    print_table(
        "limits of the machine",
        ["", "median", "fastest", "slowest"],
        [[name, *(rate_text(figures[key]) for key in ("median", "fastest", "slowest"))] for name, figures in rows],
    )
    print_table(
        "beside them, base; the limit is the most that was measured in this run",
        ["", "ours", "limit", "share"],
        [
            [name, rate_text(row["ours"]), rate_text(row["limit"]), f"{100 * row['share']:.1f} %"]
            for name, row in result["against_limits"].items()
        ],
    )


def _show_variants(variants: dict[str, Any]) -> None:
    print_table(
        "a row per variant, medians and ranges over rounds; CPU: of floor in CPU seconds of all threads",
        [
            "",
            "batch",
            "examples/s",
            "x base",
            "range",
            "ms",
            "floor ms",
            "of floor",
            "range",
            "CPU",
            "held",
            "in a step",
        ],
        [
            [
                name,
                f"{row['batch_size']:,}",
                f"{row['examples_per_second']:,.0f}",
                f"{row['to_base']['median']:.2f}",
                _range(row["to_base"], 1, "{:.2f}"),
                f"{row['step_ms']['median']:.2f}",
                f"{row['floor_ms']['median']:.2f}",
                f"{100 * row['floor_share']['median']:.0f} %",
                _range(row["floor_share"], 100, "{:.0f}"),
                f"{100 * row['cpu_floor_share']['median']:.0f} %",
                bytes_text(row["held_bytes"]),
                bytes_text(row["step_bytes"]),
            ]
            for name, row in variants.items()
        ],
    )


def _range(figures: dict[str, float], scale: float, form: str) -> str:
    low, high = sorted((figures["fastest"], figures["slowest"]))
    return f"{form.format(scale * low)}-{form.format(scale * high)}"


def _show_parts(title: str, parts: dict[str, Any], whole: float) -> None:
    print_table(
        title,
        ["", "median", "fastest", "slowest", "share"],
        [
            [
                part,
                *(_milliseconds(figures[key]) for key in ("median", "fastest", "slowest")),
                f"{100 * figures['median'] / whole if whole else 0:.1f} %",
            ]
            for part, figures in parts.items()
        ],
    )


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value >= 1 or value == 0 else f"{value:#.2g}"
