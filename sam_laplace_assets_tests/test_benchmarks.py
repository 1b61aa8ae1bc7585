"""What `make bench` says of its figures holds, and the README shows what was measured."""

import json
import math
import time

import numpy as np
import pytest

from sam_laplace_assets_tests.benchmarks import __main__ as bench
from sam_laplace_assets_tests.benchmarks import bench_gpu
from sam_laplace_assets_tests.benchmarks.bench_stage import masks_in_bf16
from sam_laplace_assets_tests.benchmarks.harness import Row, median_interval, paired


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 11, 20])
def test_the_interval_of_the_median_is_the_narrowest_of_order_statistics_with_its_confidence(n):
    low, high, confidence = median_interval(range(n))
    # each value lies below the median with probability 1/2: count the outcomes in which `low` to `high` holds it
    held = sum(math.comb(n, below) for below in range(n + 1) if low < below <= high) / 2**n
    assert held == pytest.approx(confidence)
    narrower = sum(math.comb(n, below) for below in range(n + 1) if low + 1 < below <= high - 1) / 2**n
    assert narrower < 0.95
    assert confidence >= 0.95 or (low, high) == (0, n - 1)


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held, confidence = 0, 0.0
    for _ in range(4000):
        low, high, confidence = median_interval(rng.exponential(size=9).tolist())
        held += low <= math.log(2) <= high
    assert held / 4000 == pytest.approx(confidence, abs=0.02)


def test_a_pair_is_timed_in_turns_and_the_ratio_is_that_of_its_sides():
    order = []

    def sleep(name, seconds):
        order.append(name)
        time.sleep(seconds)

    row = paired("name", lambda: sleep("ours", 0.01), lambda: sleep("theirs", 0.03), what="", against="", target=0.5,
                 better="lower", rounds=6, warmup=1)  # fmt: skip
    assert row.ratio == pytest.approx(1 / 3, rel=0.3)
    assert row.met
    pairs = list(zip(order[::2], order[1::2], strict=True))
    assert len(pairs) == 7
    assert set(pairs) == {("ours", "theirs"), ("theirs", "ours")}


@pytest.mark.parametrize(
    ("better", "interval", "met"),
    [("lower", (0.8, 1.0), True), ("lower", (0.8, 1.1), False), ("higher", (1, 3), True), ("higher", (0.9, 3), False)],
)
def test_the_whole_interval_is_held_against_the_target(better, interval, met):
    row = Row("name", "what", "against", 1.0, interval, 0.95, target=1.0, better=better)
    assert row.met is met


def test_a_benchmark_that_is_measured_again_takes_the_place_of_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BENCHMARKS", {"first": None, "second": None})
    files = {"results": tmp_path / "results.json", "table": tmp_path / "results.md", "readme": tmp_path / "README.md"}
    files["readme"].write_text(f"before\n\n{bench.BEGIN}\nold\n{bench.END}\n\nafter\n")
    for name, ratio in (("second", 2.0), ("first", 1.0), ("second", 3.0)):
        row = Row(f"{name} row", "what", "against", ratio, None, None, None, "lower")
        bench.keep(name, [row.as_json()], **files)
    rows = json.loads(files["results"].read_text())["rows"]
    assert [(row["name"], row["ratio"]) for row in rows] == [("first row", 1.0), ("second row", 3.0)]
    table = files["table"].read_text()
    assert table.count("| what |") == 3
    assert files["readme"].read_text() == f"before\n\n{bench.BEGIN}\n{table}{bench.END}\n\nafter\n"


def test_rows_of_another_machine_say_so():
    rows = [{**Row(name, name, "-", 1.0, None, None, None, "lower").as_json(), "measured_on": machine}
            for name, machine in (("a", "new"), ("b", "old"), ("c", "older"))]  # fmt: skip
    table = bench.markdown(rows, {"machine": "new", "versions": {"torch": "2"}, "measured": "today"})
    assert [line.split("|")[3].strip() for line in table.splitlines()[2:5]] == ["1", "1 (1)", "1 (2)"]
    assert "Measured on new; (1) on old; (2) on older; torch 2; today." in table


def test_the_readme_shows_the_table_that_was_measured():
    measured = json.loads(bench.RESULTS.read_text())
    table = bench.markdown(measured["rows"], measured)
    assert bench.TABLE.read_text() == table
    assert f"{bench.BEGIN}\n{table}{bench.END}" in bench.README.read_text()
    assert {row["benchmark"] for row in measured["rows"]} <= set(bench.BENCHMARKS)


def test_the_rates_of_a_gpu_are_measured_the_same_way_on_a_cpu():
    on_cpu = {"device": "cpu", "precision": "float32"}
    alone, written, shared = bench_gpu.of_model("toy", None, 1, images=2, processes=1, **on_cpu)
    assert alone.unit == "images/s"
    assert alone.notes["first_s"] > 0
    assert written.notes["gpu_computes"] is None
    plain = bench_gpu.of_plain("toy", 1, images=1, **on_cpu)
    epoch = bench_gpu.epoch_on("cpu", 1, rows=16)
    assert min(row.ratio for row in (alone, written, shared, plain, epoch)) > 0


def test_a_gpu_computes_while_any_of_its_spans_lasts():
    assert bench_gpu.covered([(5, 7), (0, 2), (1, 3), (1, 1.5), (7, 8)]) == 6
    assert bench_gpu.covered([]) == 0


def test_bf16_moves_the_toys_masks_by_little():
    row = masks_in_bf16("cpu")
    assert row.interval[0] <= row.ratio <= row.interval[1] < 0.01
    assert 0.4 < row.notes["iou_float32"] < 0.9
    assert row.notes["pixels_that_change_sides"] > 0
