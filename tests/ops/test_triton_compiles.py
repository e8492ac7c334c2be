"""The Triton kernels compiled for chips that are not there."""

import json

import pytest
from own_process import in_a_process_of_its_own


@pytest.mark.parametrize("capability", [75, 80, 90, 100])
def test_kernels_compile_for_a_chip_within_its_limits(capability):
    pytest.importorskip("triton", reason="Triton is there on Linux alone")
    from benchmarks.triton_kernels import CHIPS, KERNELS, UNITS_SINCE

    rows = [json.loads(x) for x in in_a_process_of_its_own("benchmarks.triton_kernels", str(capability)).splitlines()]
    assert {row["kernel"] for row in rows} == set(KERNELS)
    assert (
        len(rows) == len({row["dtype"] for row in rows}) * 2 * 7
    )  # two widths; four products, one sum, scans both ways
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["shared"] <= CHIPS[capability].shared, row
        assert row["programs_at_once"] >= 1, row
        uses_units = row["kernel"] != "scan_states" and capability >= UNITS_SINCE
        assert (row["matrix_instructions"] > 0) == uses_units, row
