"""The Triton kernels compiled for chips that are not there."""

import json
from importlib.util import find_spec

import pytest
from own_process import in_a_process_of_its_own


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
@pytest.mark.parametrize("capability", [75, 80, 90, 100])
def test_kernels_compile_for_a_chip_within_its_limits(capability):
    from benchmarks.triton_kernels import CHIPS, KERNELS, UNITS_SINCE

    rows = [json.loads(x) for x in in_a_process_of_its_own("benchmarks.triton_kernels", str(capability)).splitlines()]
    assert {row["kernel"] for row in rows} == set(KERNELS)
    kinds = {(row["dtype"], row["head_width"]) for row in rows}
    assert len(rows) == 7 * len(kinds) and len(kinds) == 2 * (3 if capability >= UNITS_SINCE else 2)
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["shared"] <= CHIPS[capability].shared, row
        assert row["programs_at_once"] >= 1, row
        uses_units = row["kernel"] != "scan_states" and capability >= UNITS_SINCE
        assert (row["matrix_instructions"] > 0) == uses_units, row
