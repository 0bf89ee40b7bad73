"""What docs/performance.md says is what the files under benchmarks/results say."""

import json
import re
from pathlib import Path

import pytest
from benchmarks import performance, plots, roofline, timing

PAGE = performance.PAGE.read_text(encoding="utf-8")
TARGETS = {"1.05", "1.4"}
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")


def kernel_case(**changes):
    case = {
        "batch": 2, "heads": 3, "tokens": 4096, "width": 64, "dtype": "torch.bfloat16", "causal": False,
        "metric_factor": True, "degree": "row", "gpu": "NVIDIA H100 80GB HBM3",
        "ratio_to_sdpa": {part: {"sdpa": 1.0, "triton": 1.25} for part in ("forward", "forward + backward")},
        "median_ms": {part: {"sdpa": 0.4, "triton": 0.5} for part in ("forward", "forward + backward")},
        "peak_bytes": {"sdpa": 2**20, "triton": 2**21},
    }  # fmt: skip
    return {**case, **changes}


def test_the_page_says_what_the_files_say():
    assert performance.filled(PAGE) == PAGE
    assert len(performance.blocks()) >= 10


def test_every_number_written_by_hand_stands_in_a_block():
    written = set(NUMBER.findall(performance.outside_blocks(PAGE)))
    assert sorted(written - set(NUMBER.findall(performance.inside_blocks(PAGE))) - TARGETS) == []


@pytest.mark.parametrize("plot", ["scaling", "roofline"])
def test_plots_are_drawn_from_the_files_that_are_there(plot):
    name = {"roofline": "kernel"}.get(plot, plot)
    image = performance.IMAGES / f"{plot}.svg"
    measured = performance.read(name) is not None
    assert image.is_file() == measured
    if measured:
        assert plots.source(image) == plots.digest(timing.RESULTS / f"{name}.json")


def test_what_has_not_been_measured_is_said_to_be_so(tmp_path):
    text = performance.section("operator", "Time", tmp_path)
    assert text.startswith("*Not measured yet: `benchmarks/results/operator.json` is written by")
    timing.write("operator", [{"case": "x", **timing.compare({"a": [1.0]}, "a")}], tmp_path, quick=True)
    assert performance.section("operator", "Time", tmp_path) == text


def test_a_row_has_the_baseline_the_ratios_and_whether_the_target_is_met(tmp_path):
    seconds = {"a": [0.010, 0.020, 0.030], "b": [0.024, 0.024, 0.024], "c": [0.1, 0.1, 0.1]}
    cases = [{"case": "one", **timing.compare(seconds, "a", b=1.3, c=4.0)}]
    timing.write("operator", cases, tmp_path, busy=True, load_at_start=1.5)
    lines = performance.section("operator", "Time", tmp_path).splitlines()
    assert lines[0] == "| Case | `a` takes | b | c | Target |"
    assert lines[2] == "| one | 20 ms [15, 25] | 1.20 | 5.00 | b ≤ 1.30: met, c ≤ 4.00: **missed** |"
    assert "load 1.5 at the start" in lines[-1]
    assert "The cores were busy: do not quote these numbers." in lines[-1]


def test_sides_that_differ_get_tables_of_their_own(tmp_path):
    cases = [{"case": name, **timing.compare({"a": [1.0], name: [2.0]}, "a")} for name in ("b", "c", "b")]
    timing.write("operator", cases, tmp_path)
    lines = performance.section("operator", "Time", tmp_path).splitlines()
    assert [line for line in lines if "takes" in line] == ["| Case | `a` takes | b |", "| Case | `a` takes | c |"]
    assert len([line for line in lines if line.startswith("| b")]) == 2


def test_memory_has_megabytes_and_ratios(tmp_path):
    peaks = {"a": 2**21, "b": 3 * 2**20}
    timing.write("step", [{"case": "one", **timing.compare_memory(peaks, "a", b=1.05)}], tmp_path)
    lines = performance.section("step", "Memory", tmp_path).splitlines()
    assert lines[2] == "| one | 2.0 MiB | 3.0 MiB (1.50) | b ≤ 1.05: **missed** |"


def test_rates_have_their_ratio(tmp_path):
    rates = {"ours": 1000.0, "naive": 20.0}
    timing.write("ranking", [{"case": "one", "candidates_per_second": rates}], tmp_path)
    assert performance.section("ranking", "Rates", tmp_path).splitlines()[2] == "| one | 20.0 | 1,000.0 | 50.0 |"


def test_a_section_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"operator\.json has no section 'Nothing'"):
        performance.section("operator", "Nothing")


def test_the_kernel_has_a_table_and_a_roofline(tmp_path):
    cases = [kernel_case(), kernel_case(degree="symmetric", tokens=577, dtype="torch.float32")]
    timing.write("kernel", cases, tmp_path)
    lines = performance.section("kernel", "Time", tmp_path).splitlines()
    assert lines[2] == "| 2 x 3 x 4,096 x 64, bfloat16 | 1.25 | 1.25 | - | 2 MiB (1 MiB) |"
    assert lines[3].startswith("| 2 x 3 x 577 x 64, float32, symmetric |")
    assert "NVIDIA H100 80GB HBM3" in lines[-1]
    (image,) = performance.draw(tmp_path, tmp_path / "images")
    assert image.name == "roofline.svg"
    assert plots.source(image) == plots.digest(tmp_path / "kernel.json")
    (tmp_path / "kernel.json").unlink()
    assert performance.draw(tmp_path, tmp_path / "images") == []
    assert not image.exists()


def test_a_point_of_the_roofline_counts_what_the_equations_ask_for():
    unit = 2 * 2 * 3 * 4096**2 * 64  # operations of one product of N x N x d
    tensor = 2 * 3 * 4096 * 64 * 2  # bytes of one tensor
    found = roofline.point(kernel_case(), "forward", "triton")
    assert found == pytest.approx((3 * unit / (4 * tensor), 3 * unit / 0.0005))
    found = roofline.point(kernel_case(causal=True), "forward + backward", "sdpa")
    assert found == pytest.approx((3 * unit / (12 * tensor), 3 * unit / 0.0004))


def test_the_roof_is_memory_first_and_arithmetic_then():
    peak = roofline.Peak(100.0, 10.0)
    assert [roofline.roof(peak, x) for x in (1.0, 10.0, 20.0)] == [10.0, 100.0, 100.0]
    assert roofline.peak_of("NVIDIA H100 PCIe").bandwidth < roofline.peak_of("NVIDIA H100 80GB HBM3").bandwidth
    with pytest.raises(ValueError, match="--peak-tflops"):
        roofline.peak_of("another")


def test_files_are_the_size_they_say():
    """Files that are there can be read, and none is of toy sizes."""
    for path in Path(timing.RESULTS).glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert not (isinstance(found, dict) and found.get("quick")), path
