"""The records of a run's files are read as written, and errors name missing fields."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from saefast.disk.tables import read_json, write_json
from saefast.evaluation.regression import EffectRegression
from saefast.lm.losses import Estimate
from saefast.lm.patch import PatchEffect
from saefast.report.run_data import RunData
from saefast.run_folder import EVALUATION, MEMBERSHIP, POOLING, STABILITY, STAGES
from saefast.run_records import (
    EffectRecord,
    EstimateRecord,
    EvaluationRecord,
    MembershipRecord,
    PoolingRecord,
    RegressionRecord,
    StabilityRecord,
    StageRecord,
    read_record,
    write_record,
)

FILES: dict[str, Any] = {
    STABILITY: StabilityRecord,
    MEMBERSHIP: MembershipRecord,
    EVALUATION: EvaluationRecord,
    POOLING: PoolingRecord,
    STAGES: dict[str, StageRecord],
}


@pytest.mark.parametrize("name", FILES)
def test_files_have_exactly_the_fields_of_their_records(
    name: str, planted_run: Path, tmp_path: Path
) -> None:
    record = read_record(planted_run / name, FILES[name])
    write_record(tmp_path / name, record)
    assert (tmp_path / name).read_bytes() == (planted_run / name).read_bytes()
    assert read_record(tmp_path / name, FILES[name]) == record


@pytest.mark.parametrize(
    ("record", "result", "added"),
    [
        (RegressionRecord, EffectRegression, {"reason"}),
        (EffectRecord, PatchEffect, set()),
        (EstimateRecord, Estimate, set()),
    ],
)
def test_a_record_has_the_fields_of_its_result(record: Any, result: Any, added: set[str]) -> None:
    fields = getattr(result, "_fields", None) or [each.name for each in dataclasses.fields(result)]
    assert {each.name for each in dataclasses.fields(record)} == {*fields, *added}


def test_errors_name_the_file_and_the_missing_field(planted_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(planted_run, tmp_path / "run")
    record = read_json(run / EVALUATION)
    del record["seeds"][1]["groups"][0]["keep_std"]
    write_json(run / EVALUATION, record)
    with pytest.raises(ValueError, match=r"evaluation\.json .*seeds\[1\]\.groups\[0\]\.keep_std"):
        _ = RunData(run).evaluation
    write_json(run / EVALUATION, [3])
    with pytest.raises(ValueError, match=r"evaluation\.json is not a valid EvaluationRecord"):
        _ = RunData(run).evaluation
    assert read_record(run / "nothing.json", StageRecord) is None


def test_fields_that_are_none_by_default_are_left_out(tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", PoolingRecord(3, 4, 5, reason="so"))
    assert read_json(tmp_path / "x.json") == {"width": 3, "unique": 4, "tokens": 5, "reason": "so"}
    regression = RegressionRecord(reason="so")
    write_record(tmp_path / "y.json", EvaluationRecord(1, True, [], regression, None))
    assert read_json(tmp_path / "y.json")["language_model"] is None
