"""Damaged, hostile or inconsistent files of SAEs: errors name the file, and no code in it runs."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.sae_files import (
    DEC,
    ENC,
    HOLDS,
    OPENAI,
    D,
    K,
    M,
    X,
    assert_close,
    assert_computes,
    lens,
    of_own_storage,
    some_sae,
    values,
    write_config,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import saefast

Break = Callable[[Path], None]


def changed(**tensors: Tensor | None) -> Break:
    def apply(folder: Path) -> None:
        held = load_file(folder / "sae_weights.safetensors") | tensors
        kept = {name: value for name, value in held.items() if value is not None}
        save_file(of_own_storage(kept), folder / "sae_weights.safetensors")

    return apply


def configured(**config: Any) -> Break:
    def apply(folder: Path) -> None:
        config_read = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(config_read | config))

    return apply


def both(first: Break, second: Break) -> Break:
    def apply(folder: Path) -> None:
        first(folder)
        second(folder)

    return apply


def put(name: str, content: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content) and None


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((3, 2), np.float32))
    return file.getvalue()


WEIGHTS = "sae_weights.safetensors"
BROKEN: dict[str, tuple[Break, str]] = {
    "truncated": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-5]) and None,
        "truncated or not a safetensors file",
    ),
    "empty": (put(WEIGHTS, b""), "truncated or not a safetensors file"),
    "huge header": (put(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), "header would be 1152921504"),
    "deep header": (put(WEIGHTS, struct.pack("<Q", 4000) + b"[" * 4000), "truncated or not"),
    "not tensors": (put(WEIGHTS, b"PK\x03\x04 but no archive"), "truncated or not"),
    "an array": (put(WEIGHTS, npy()), "is a single NumPy array; expected a .safetensors, .pt or"),
    "settings": (put(WEIGHTS, b'{"k": 3}'), "is a JSON file; expected"),
    "short json": (put(WEIGHTS, b"{ }"), "is a JSON file; expected"),
    "a table": (put(WEIGHTS, b"PAR1\x15\x04\x15\x80"), "is a Parquet table; expected"),
    "a model": (put(WEIGHTS, b"GGUF\x03\0\0\0\x10"), "is a GGUF file; expected"),
    "key missing": (changed(b_enc=None), r"b_enc is missing; the file holds W_dec, W_enc, b_dec"),
    "key more": (changed(W_more=torch.ones(2)), "are not part of its format: 'W_more'"),
    "path as a key": (
        changed(**{"../../b": torch.ones(2)}),
        r"are not part of its format: '../../b'",
    ),
    "encoder transposed": (changed(W_enc=ENC), r"W_enc must have shape .*transposed\?"),
    "decoder transposed": (changed(W_dec=DEC.T), r"W_dec must have shape .*transposed\?"),
    "no matrix": (changed(W_dec=DEC.flatten()), r"W_dec must have shape \(33, 10\), got \(330,\)"),
    "NaN": (changed(W_dec=torch.full((M, D), torch.nan)), "W_dec holds NaN or infinity"),
    "infinity": (changed(b_dec=torch.full((D,), -torch.inf)), "b_dec holds NaN or infinity"),
    "integers": (changed(b_enc=torch.ones(M, dtype=torch.int64)), "b_enc must hold floats"),
    "other size": (configured(d_sae=M + 1), r"W_enc must have shape \(10, 34\), got \(10, 33\)"),
    "immense size": (configured(d_sae=10**30), "W_enc must have shape"),
    "negative size": (configured(d_in=-1), "W_enc must have shape"),
    "k too large": (configured(k=M + 1), "k must be from 1 to 33"),
    "k no number": (configured(k="five"), "must give k as an integer, got 'five'"),
    "k true": (configured(k=True), "must give k as an integer"),
    "other architecture": (configured(architecture="temporal"), "architecture must be one of"),
    "architecture no name": (configured(architecture=[1]), "architecture must be one of"),
    "other tensors": (
        both(changed(W_enc=None, b_enc=None), configured(architecture="matching_pursuit")),
        "architecture must be one of .*, got 'matching_pursuit'",
    ),
    "other activation": (configured(activation_fn="tanh-relu"), "activation_fn must be"),
    "other scale": (configured(normalize_activations="zca"), "normalize_activations must be"),
    "other shape": (configured(reshape_activations="heads"), "reshape_activations must be"),
    "config a list": (put("cfg.json", b"[1]"), "must hold a JSON object, got list"),
    "config deep": (put("cfg.json", b"[" * 100_000), "is not JSON"),
    "config no text": (put("cfg.json", b"\xff\xfe\x00"), "is not JSON"),
    "sparsity too short": (
        lambda f: save_file({"sparsity": torch.zeros(3)}, f / "sparsity.safetensors"),
        r"sparsity must have shape \(33,\), got \(3,\)",
    ),
    "sparsity NaN": (
        lambda f: save_file({"sparsity": torch.full((M,), torch.nan)}, f / "sparsity.safetensors"),
        "sparsity must hold logarithms of at most 0, but holds NaN",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_errors_name_the_file_and_the_tensor(tmp_path: Path, case: str) -> None:
    folder = lens(tmp_path / "sae", architecture="topk", k=K)
    saefast.load_sae(folder)
    apply, message = BROKEN[case]
    apply(folder)
    with pytest.raises(ValueError, match=message) as raised:
        saefast.load_sae(folder)
    assert str(folder) in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]


def test_folders_without_an_sae_raise(tmp_path: Path) -> None:
    (tmp_path / "layers.3").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no SAE.*one of its folders.*layers\.3"):
        saefast.load_sae(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        saefast.load_sae(tmp_path / "nowhere")
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    with pytest.raises(FileNotFoundError, match=r"cfg.json does not exist.*\('a'\)"):
        saefast.load_sae(tmp_path)
    write_config(tmp_path, "config.json", {})
    with pytest.raises(ValueError, match="of no known format"):
        saefast.load_sae(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "2.safetensors")
    with pytest.raises(ValueError, match=r"several files of tensors, 1.*, 2.*give the path"):
        saefast.load_sae(tmp_path)


class Grenade:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Swollen:
    """An object whose unpickling allocates a gigabyte, which torch permits."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**30,)


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_is_unpickled_by_default(tmp_path: Path, archive: bool) -> None:
    file, proof = tmp_path / "a.pt", tmp_path / "proof"
    contents = OPENAI | {"activation": "ReLU", "note": Grenade(proof)}
    torch.save(of_own_storage(contents), file, _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match=r"a\.pt holds Python objects .*allow_pickle=True"):
        saefast.load_sae(file)
    assert not proof.exists()
    sae = saefast.load_sae(file, allow_pickle=True)
    assert proof.exists()
    assert_computes(sae, values(X).relu())


def test_pickled_modules_are_read_if_allowed(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.encoder, module.decoder = torch.nn.Linear(D, M), torch.nn.Linear(M, D)
    torch.save(module, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="allow_pickle"):
        saefast.load_sae(tmp_path / "a.pt")
    sae = saefast.load_sae(tmp_path / "a.pt", allow_pickle=True)
    with torch.no_grad():
        assert_close(sae(X), module.decoder(module.encoder(X).relu()).double())


def test_files_that_would_grow_when_read_are_refused(tmp_path: Path) -> None:
    claimed = OPENAI | {"encoder.weight": torch.ones(1, 1).expand(2**20, 2**20)}
    torch.save(claimed, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"encoder.weight has shape \(1048576, 1048576\), more"):
        saefast.load_sae(tmp_path / "a.pt")
    np.savez_compressed(tmp_path / "b.npz", W_enc=np.zeros((1000, 1000), np.float32))
    with pytest.raises(ValueError, match="would grow from"):
        saefast.load_sae(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", W_enc=np.array([{}]))
    with pytest.raises(ValueError, match=r"c\.npz: W_enc cannot be read: it holds Python objects"):
        saefast.load_sae(tmp_path / "c.npz")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00\xff\xff{'descr'")
    with pytest.raises(ValueError, match=r"d\.npz: W_enc cannot be read"):
        saefast.load_sae(tmp_path / "d.npz")
    torch.save({"encoder.weight": ENC, "more": Swollen()}, tmp_path / "f.pt")
    with pytest.raises(ValueError, match=r"f\.pt holds Python objects"):
        saefast.load_sae(tmp_path / "f.pt")
    (tmp_path / "e.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"e\.pt is truncated or not a torch file"):
        saefast.load_sae(tmp_path / "e.pt")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("written")
    return {
        name: saefast.save_sae(some_sae(variants[-1]), folder / name, format=name)
        for name, variants in HOLDS.items()
    }


@settings(max_examples=150)
@given(data=st.data())
def test_corrupt_bytes_raise_expected_errors(
    written: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    """Loading returns an SAE or raises an error that names the problem."""
    source = written[data.draw(st.sampled_from(sorted(written)))]
    file = data.draw(st.sampled_from(sorted(source.iterdir())))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            # Headers are short, and most errors are in them.
            end = data.draw(st.sampled_from([min(400, len(content)), len(content)]))
            content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    for old in tmp_path.iterdir():
        old.unlink()
    for other in source.iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    (tmp_path / file.name).write_bytes(content)
    try:
        sae = saefast.load_sae(tmp_path)
    except (ValueError, OSError) as error:
        assert str(tmp_path) in str(error) or "must be" in str(error)  # noqa: PT017
    else:
        assert all(bool(value.isfinite().all()) for value in sae.state_dict().values())


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=150)
@given(data=st.data())
def test_corrupt_settings_raise_expected_errors(
    written: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    source = written[data.draw(st.sampled_from([name for name in written if name in WITH_CONFIG]))]
    file = next(file for file in source.iterdir() if file.suffix == ".json")
    config = json.loads(file.read_text())
    place = config
    while True:
        key = data.draw(
            st.sampled_from([*sorted(place), "k", "activation_fn", "normalize_activations"])
        )
        if not isinstance(place.get(key), dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(ANYTHING)
    for other in source.iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    (tmp_path / file.name).write_text(json.dumps(config))
    try:
        sae = saefast.load_sae(tmp_path)
    except (ValueError, OSError) as error:
        assert str(tmp_path) in str(error) or "must be" in str(error)  # noqa: PT017
    else:
        assert (sae.d, sae.m) == (D, M)
        saefast.save_sae(sae, tmp_path.parent / "again")


WITH_CONFIG = ("sae_lens", "sparsify", "dictionary_learning", "llamascopium", "batch_topk")
