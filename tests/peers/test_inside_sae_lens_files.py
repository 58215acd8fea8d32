"""SAEs trained with saefast inside have SAELens's files, checkpoints and settings."""

import copy
import json
import runpy
import sys
from pathlib import Path

import pytest
import sae_lens
import torch
from lens_training import (
    THRESHOLDS,
    TIGHT,
    VARIANTS,
    D,
    M,
    batches_of,
    made,
    pair,
    step_of,
    trainer_of,
)
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_training_class
from safetensors.torch import load_file, save_file

import saefast

every_variant = pytest.mark.parametrize("variant", [*VARIANTS, *THRESHOLDS])


@pytest.mark.usefixtures("however_dense")
@every_variant
def test_inference_files_match_saelens(variant: str, tmp_path: Path) -> None:
    x, files = batches_of(1)[0], []
    for sae in pair(variant):
        trainer_of(sae, iter(())).step(x)
        folder = tmp_path / sae.cfg.architecture()
        sae.save_inference_model(folder)
        files.append((json.loads((folder / "cfg.json").read_text()), folder))
    (own, own_folder), (ours, folder) = files
    assert ours["metadata"].pop("training_architecture") == f"saefast_{variant}"
    assert own["metadata"].pop("training_architecture") == variant
    assert ours == own
    tensors, expected = (load_file(at / "sae_weights.safetensors") for at in (folder, own_folder))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    loaded = SAE.load_from_disk(folder)
    assert type(loaded) is type(SAE.load_from_disk(own_folder))
    with torch.no_grad():
        torch.testing.assert_close(saefast.load_sae(folder)(x), loaded(x), **TIGHT)


def test_saefast_reads_the_trained_files(tmp_path: Path) -> None:
    sae, x = made("saefast_topk", rescale_acts_by_decoder_norm=False), batches_of(1)[0]
    trainer_of(sae, iter(())).step(x)
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(saefast.load_sae(tmp_path)(x), sae(x), **TIGHT)


@pytest.mark.usefixtures("however_dense")
@every_variant
def test_training_resumes_from_a_saelens_checkpoint(variant: str, tmp_path: Path) -> None:
    """Saved and loaded by SAELens; equal to an uninterrupted training."""
    batches = batches_of(8)
    whole = trainer_of(made(f"saefast_{variant}"), iter(()))
    for number, x in enumerate(batches):
        if number == 4:
            whole.save_checkpoint("middle", tmp_path)
        whole.step(x)
    loaded = TrainingSAE.load_from_disk(tmp_path / "middle")
    assert loaded.cfg.architecture() == f"saefast_{variant}"
    resumed = trainer_of(loaded, iter(()))
    resumed.load_trainer_state(tmp_path / "middle")
    for x in batches[4:]:
        resumed.step(x)
    for mine, theirs in zip(resumed.sae.parameters(), whole.sae.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    other = made(f"saefast_{variant}")
    other.load_weights_from_checkpoint(tmp_path / "middle")


@every_variant
def test_configs_match_saelens(variant: str) -> None:
    alone, with_saefast = (get_sae_training_class(f"{who}{variant}")[1] for who in ("", "saefast_"))
    assert issubclass(with_saefast, alone)
    settings = copy.deepcopy(VARIANTS.get(variant, {}))
    own, ours = (kind(d_in=D, d_sae=M, **settings).to_dict() for kind in (alone, with_saefast))
    assert ours.pop("architecture") == f"saefast_{own.pop('architecture')}"
    assert ours.pop("metadata")["training_architecture"] == f"saefast_{variant}"
    own.pop("metadata")
    assert ours == own
    config = with_saefast(d_in=D, d_sae=M, **settings)
    again = sae_lens.TrainingSAEConfig.from_dict(config.to_dict())
    assert type(again) is with_saefast
    assert again.get_inference_sae_cfg_dict()["architecture"] in (
        "topk",
        "abstopk",
        "jumprelu",
        "standard",
    )


# SAELens imports its runner in __init__, and runpy warns of running a module twice.
@pytest.mark.filterwarnings("ignore:'sae_lens.llm_sae_training_runner' found:RuntimeWarning")
def test_command_line_knows_the_architectures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("saefast.integrations.sae_lens", run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for variant in (*VARIANTS, *THRESHOLDS):
        assert f"saefast_{variant}" in shown


def test_state_dicts_match_saelens() -> None:
    alone, with_saefast = pair("topk")
    with_saefast.training_forward_pass(step_of(batches_of(1)[0]))
    own, ours = alone.state_dict(), with_saefast.state_dict()
    assert list(ours) == list(own)
    for name, tensor in ours.items():
        assert tensor.is_contiguous(), "safetensors refuses anything else"
        assert tensor.shape == own[name].shape
    alone.load_state_dict(ours)
    with_saefast.load_state_dict(own)
    assert with_saefast.W_enc.T.is_contiguous()


def test_state_dict_can_be_saved_without_saelens(tmp_path: Path) -> None:
    sae = made("saefast_topk")
    sae.training_forward_pass(step_of(batches_of(1)[0]))
    save_file(sae.state_dict(), tmp_path / "weights.safetensors")
