"""Loading the dictionaries of many seeds from disk."""

from pathlib import Path

import pytest
import torch
from helpers.sae_files import M, some_sae
from helpers.tolerance import assert_same_bits
from safetensors.torch import save_file

import saefast
from saefast import SAE


def test_dictionaries_of_a_run_are_in_order_with_firing_rates(tmp_path: Path) -> None:
    rates = torch.tensor([0.0, 1e-9, 1e-3, 1.0]).repeat(9)[:M]
    run = tmp_path / "run"
    for seed in (10, 2):
        sae = some_sae("topk", seed)
        sae.firing_rate = rates
        with torch.no_grad():
            sae.W_dec.fill_(seed)
        saefast.storage.save_into(run / f"seed-{seed}", sae)
    saefast.save_sae(some_sae("topk"), run / "pooled")
    (run / "matches").mkdir()
    first, second = saefast.load_dictionaries(run)
    assert (float(first.W_dec[0, 0]), float(second.W_dec[0, 0])) == (2.0, 10.0)
    assert first.W_enc is None
    torch.testing.assert_close(first.firing_rate, rates, rtol=1e-4, atol=0)
    assert torch.equal(first.alive, rates > 0)
    assert saefast.match_features(first, first).partner[1] == 1
    both = saefast.load_dictionaries(run, run / "pooled", encoder=True)
    assert len(both) == 3
    assert_same_bits(both[2].W_enc, saefast.load_sae(run / "pooled").W_enc.detach())


def test_dictionaries_of_sparsify_seeds_and_sweeps_are_found(tmp_path: Path) -> None:
    for seed in (0, 11, 2):
        sae = some_sae("topk", seed)
        with torch.no_grad():
            sae.W_dec.fill_(seed + 1)
        saefast.save_sae(sae, tmp_path / "layers.3" / f"seed{seed}", format="sparsify")
        saefast.save_sae(sae, tmp_path / "dl" / f"trainer_{seed}", format="dictionary_learning")
    for folder in ("layers.3", "dl"):
        dictionaries = saefast.load_dictionaries(tmp_path / folder)
        assert [float(d.W_dec[0, 0]) for d in dictionaries] == [1.0, 3.0, 12.0]
    with pytest.raises(FileNotFoundError, match=r"give one of its folders: dl, layers\.3"):
        saefast.load_dictionaries(tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        saefast.load_dictionaries()


def test_firing_rates_are_converted_between_formats(tmp_path: Path) -> None:
    rates = torch.linspace(0, 1, M)
    sae = some_sae("relu")
    sae.firing_rate = rates
    saefast.save_sae(sae, tmp_path / "a")
    file = saefast.convert(tmp_path / "a", tmp_path / "b.pt", to="openai")
    (dictionary,) = saefast.load_dictionaries(file)
    torch.testing.assert_close(dictionary.firing_rate, rates, rtol=1e-5, atol=1e-9)


def anonymous_memory() -> int:
    """Return the bytes of this process that are not mapped from files."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", ["sae_lens", "sparsify", "dictionary_learning", "gemma_scope"])
def test_dictionaries_are_mapped_instead_of_read(tmp_path: Path, name: str) -> None:
    m, d = 20_000, 256
    with torch.device("meta"):
        sae = SAE(d, m, variant="jumprelu" if name == "gemma_scope" else "topk", device="meta")
    sae = sae.to_empty(device="cpu")
    with torch.no_grad():
        for value in sae.state_dict().values():
            value.fill_(0.5)
    size = sae.W_dec.nbytes
    path = saefast.save_sae(sae, tmp_path / "sae", format=name)
    del sae
    saefast.load_dictionaries(path)
    before = anonymous_memory()
    (dictionary,) = saefast.load_dictionaries(path, encoder=True)
    total = float(dictionary.W_dec.sum()) + float(dictionary.W_enc.sum())
    assert anonymous_memory() - before < size / 4
    assert total == m * d


def test_rates_of_zero_survive_the_rounding_of_their_logarithm(tmp_path: Path) -> None:
    folder = saefast.save_sae(some_sae("topk"), tmp_path / "sae")
    sparsity = torch.zeros(M)
    sparsity[0], sparsity[1] = -torch.inf, torch.nextafter(torch.tensor(-10.0), torch.tensor(0.0))
    save_file({"sparsity": sparsity}, folder / "sparsity.safetensors")
    (dictionary,) = saefast.load_dictionaries(folder)
    assert dictionary.firing_rate is not None
    assert dictionary.firing_rate[:2].tolist() == [0.0, 0.0]
    assert dictionary.alive.sum() == M - 2
