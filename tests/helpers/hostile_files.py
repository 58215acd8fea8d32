"""Mutated files of every format that saefast reads, read in a process with limits.

    python -m helpers.hostile_files FOLDER CASES

Prints a line of JSON with the numbers of outcomes. It fails at the first case that neither gives a
result nor an error that names the file: at another exception, more than `MEMORY` bytes, more than
`SECONDS`, an unpickled object, a started program, a connection, or a file that is opened for
writing outside of the folder of the case.
"""

import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers.sae_files import HOLDS, some_sae
from helpers.tiny_run import SETTINGS, as_toml

import saefast
from saefast.activations import StoreWriter, open_activations
from saefast.damage import verify
from saefast.disk.tables import read_json, read_table, write_json, write_table
from saefast.evaluation.probing.tasks.tables import _read as read_columns
from saefast.lm import corpus
from saefast.match.saved import read_pair
from saefast.pipeline.settings_file import read_settings
from saefast.sweep.definition import read_sweep
from saefast.train.ranks.files import read_state, write_state, written

MEMORY = 512 << 20
"""Bytes of address space that reading a file of a few kilobytes may add"""
SECONDS = 20
ROWS, D = 40, 6
_FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect")
_CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
)


class Target(NamedTuple):
    """Writer of a folder with files of one format, and their reader."""

    make: Callable[[Path], object]
    read: Callable[[Path], object]


def _rows() -> torch.Tensor:
    return torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))


def _sae(format: str) -> Target:
    def make(folder: Path) -> None:
        saefast.save_sae(some_sae(HOLDS[format][-1]), folder, format=format)

    def read(folder: Path) -> None:
        saefast.load_sae(folder, verify=False)
        saefast.load_sae(folder)

    return Target(make, read)


def _store(folder: Path) -> None:
    with StoreWriter(folder, D, dtype=torch.float32, rows_per_shard=25) as writer:
        writer.append(_rows(), tokens=torch.arange(ROWS, dtype=torch.int32))


def _streamed(source: Any) -> None:
    """Read the first batches of a source of activations."""
    opened = open_activations(source)
    for _ in itertools.islice(opened.batches(8, seed=0), 5):
        pass


def _cached(folder: Path) -> None:
    """Write a cache of SAELens: a folder of the `datasets` library."""
    import pyarrow as pa

    folder.mkdir()
    write_json(folder / "state.json", {"_data_files": [{"filename": "data.arrow"}]})
    feature = {"_type": "Array2D", "shape": [5, D], "dtype": "float32"}
    write_json(folder / "dataset_info.json", {"features": {"hook": feature}})
    column = pa.array(_rows().view(-1, 5, D).tolist(), pa.list_(pa.list_(pa.float32())))
    table = pa.table({"hook": column})
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as stream:
        stream.write_table(table)


def _checkpoint() -> dict[str, torch.Tensor]:
    return {"W_enc": _rows(), "b_enc": _rows()[:, 0].clone(), "W_dec": _rows(), "b_dec": _rows()[0]}


def _lines(folder: Path) -> None:
    folder.mkdir()
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _tables(folder: Path) -> None:
    folder.mkdir()
    columns = {"text": [f"text {i}" for i in range(20)], "label": [i % 3 for i in range(20)]}
    write_table(folder / "rows.parquet", columns)
    lines = [f'"{text}",{label}\n' for text, label in zip(*columns.values(), strict=True)]
    (folder / "rows.csv").write_text("text,label\n" + "".join(lines))


def _matches(folder: Path) -> None:
    saefast.match_all(
        [saefast.SAE(6, 40, k=3, seed=seed) for seed in range(2)], out=folder, progress=False
    )


def _text(name: str, content: str, read: Callable[[Path], object]) -> Target:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_text(content)

    return Target(make, lambda folder: read(folder / name))


def _in(name: str, write: Callable[[Path], object], read: Callable[[Path], object]) -> Target:
    def make(folder: Path) -> None:
        folder.mkdir()
        write(folder / name)

    return Target(make, lambda folder: read(folder / name))


def _as_yaml() -> str:
    lines = []
    for table, its in SETTINGS.items():
        lines += [f"{table}:", *(f"  {name}: {json.dumps(value)}" for name, value in its.items())]
    return "\n".join(lines)


_SWEEP = 'base = "demo"\n[settings]\n"train.k" = 4\n[grid]\n"train.latents" = [64, 128]\n'

TARGETS: dict[str, Target] = {
    **{f"SAE of {format}": _sae(format) for format in HOLDS},
    "store": Target(_store, _streamed),
    ".npy": _in("a.npy", lambda path: np.save(path, _rows().numpy()), _streamed),
    ".pt": _in("a.pt", lambda path: torch.save(_rows(), path), _streamed),
    "cache of SAELens": Target(_cached, _streamed),
    "checkpoint": Target(
        lambda folder: write_state(folder, 1, _checkpoint(), None),
        lambda folder: read_state(written(folder, 1), _checkpoint(), None),
    ),
    "Parquet": _in(
        "a.parquet",
        lambda path: write_table(path, {"a": np.arange(30.0), "b": [f"{i}" for i in range(30)]}),
        read_table,
    ),
    "matches": Target(_matches, lambda folder: read_pair(folder / "0-1.parquet")),
    "tables of tasks": Target(
        _tables, lambda folder: [read_columns(path) for path in sorted(folder.iterdir())]
    ),
    "lines of JSON": Target(
        _lines,
        lambda folder: (
            read_columns(folder / "rows.jsonl"),
            list(corpus.json_lines(folder / "rows.jsonl")),
        ),
    ),
    "JSON": _text("a.json", json.dumps(SETTINGS), read_json),
    "settings in JSON": _text("a.json", json.dumps(SETTINGS), read_settings),
    "settings in TOML": _text("a.toml", as_toml(SETTINGS), read_settings),
    "settings in YAML": _text("a.yaml", _as_yaml(), read_settings),
    "sweep": _text("a.toml", _SWEEP, read_sweep),
}

_NUMBERS = [b"0", b"-1", b"1e999", b"9" * 30, b"9" * 5000, str(2**63).encode(), b"NaN", b"1.5"]
_TEXTS = [
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"null",
    b'"../../x"',
    b"\0",
    b"\xff\xfe",
    b"*a",
    b"{}",
]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return the content after one to three random changes, most of them in its header."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        size = len(changed)
        if not size:
            break
        at = draw.randrange(draw.choice([min(size, 400), size]))
        kind = draw.randrange(8)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + draw.randint(1, 40)]
        elif kind == 3:
            changed[at:at] = draw.randbytes(draw.randint(1, 40))
        elif kind == 4:
            length = draw.choice([1, 2, 4, 8])
            changed[at : at + length] = draw.choice([b"\xff", b"\0", b"\x7f", b"\x80"]) * length
        elif kind == 5:
            numbers = list(re.finditer(rb"\d+", changed))
            if numbers:
                place = draw.choice(numbers)
                changed[place.start() : place.end()] = draw.choice(_NUMBERS)
        elif kind == 6:
            changed[at : at + draw.choice([0, 1, 8])] = draw.choice(_TEXTS)
        else:
            other = draw.randrange(size)
            changed[at:at] = changed[other : other + draw.randint(1, 200)]
    return bytes(changed)


class Watch:
    """An audit hook that refuses operations that no reader of files needs."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _FORBIDDEN or event == "pickle.find_class":
            self.seen.append(f"{event} {arguments}")
        elif event == "open" and isinstance(arguments[0], str):
            path, mode, flags = arguments
            changes = os.O_RDWR | os.O_WRONLY
            writes = any(letter in (mode or "r") for letter in "wax+") or (flags or 0) & changes
            if writes and self._outside(os.path.abspath(path)):
                self.seen.append(f"opened {path} for writing")
        elif event in _CHANGES and any(map(self._outside, arguments[:2])):
            self.seen.append(f"{event} {arguments}")

    def _outside(self, path: object) -> bool:
        """Return whether an absolute path is outside of the folder of the case.

        Relative paths are those of calls that name an open folder.
        """
        if not isinstance(path, str) or not os.path.isabs(path) or self.folder is None:
            return False
        return not Path(os.path.abspath(path)).is_relative_to(self.folder)


def _late(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _ended(target: Target, folder: Path) -> str:
    try:
        target.read(folder)
        verify_any(folder)
    except (ValueError, TypeError, OSError) as error:
        named = str(folder) in str(error) or "must be" in str(error)
        if isinstance(error, TimeoutError) or not named:
            raise
        return "clear error"
    return "read"


def _mutated_file(file: Path, draw: random.Random) -> bytes:
    return mutated(file.read_bytes(), draw)


def run(
    root: Path,
    cases: int,
    targets: dict[str, Target] = TARGETS,
    change: Callable[[Path, random.Random], bytes] = _mutated_file,
) -> dict[str, int]:
    """Read changed files of all targets in turn, and count how that ended."""
    root = root.resolve()
    (root / "whole").mkdir()
    for name, target in targets.items():
        target.make(root / "whole" / name)
        target.read(root / "whole" / name)
        verify_any(root / "whole" / name)
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    watch = Watch()
    signal.signal(signal.SIGALRM, _late)
    _limit()
    outcomes: Counter[str] = Counter()
    names = list(targets)
    for case in range(cases):
        draw = random.Random(case)
        # Without checksums, mutations reach the readers themselves.
        os.environ["SAEFAST_VERIFY"] = draw.choice("01")
        name = names[case % len(names)]
        folder = root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root / "whole" / name, folder)
        file = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        file.write_bytes(change(file, draw))
        (root / "last").write_text(f"case {case}, {name}, {file.name}\n")
        watch.folder = folder
        signal.alarm(SECONDS)
        try:
            outcomes[_ended(targets[name], folder)] += 1
        except BaseException as error:
            error.add_note((root / "last").read_text())
            raise
        finally:
            signal.alarm(0)
            watch.folder = None
        assert not watch.seen, (case, name, file.name, watch.seen)
    return dict(outcomes)


def verify_any(folder: Path) -> None:
    """Verify the files of a folder, if it holds any of a kind that has checksums."""
    try:
        verify(folder)
    except FileNotFoundError:
        return


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))))
