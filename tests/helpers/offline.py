"""Work of every kind without a network, in a process in which each attempt to use one is recorded.

    python -m helpers.offline FOLDER

Fails if anything resolves a name, or connects to anything but a socket of the file system.
"""

import contextlib
import io
import random
import socket
import sys
from pathlib import Path
from typing import Any

_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
attempts: list[str] = []


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    if event == "socket.connect" and arguments[0].family == socket.AF_UNIX:
        return
    attempts.append(f"{event} {arguments[1:] or arguments}")
    raise OSError("the network is blocked")


def write_run(folder: Path) -> Path:
    """Write a tiny language model, texts, labelled texts, and settings of a run on them."""
    from helpers.tiny_lm import harvest_of, saved
    from helpers.tiny_run import SETTINGS, as_toml

    saved(folder / "model")
    (folder / "texts").mkdir()
    drawn = random.Random(0)
    for number in range(30):
        words = ["".join(drawn.choices("etaoinshrdlu", k=5)) for _ in range(20)]
        (folder / "texts" / f"{number}.txt").write_text(" ".join(words))
    lines = [
        f"{'aei' if i % 2 else 'bcd'} {'ou' if i % 2 else 'fg'} {i},{i % 2}" for i in range(60)
    ]
    (folder / "labelled.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    settings = {
        "harvest": harvest_of(folder, tokens=1500, held_out=200),
        "train": SETTINGS["train"] | {"latents": 24, "tokens": 3000, "seeds": [0, 1]},
    }
    (folder / "run.toml").write_text(as_toml(settings))
    return folder / "run.toml"


def main(folder: Path) -> None:
    """Use the commands and the library."""
    sys.addaudithook(_refuse)
    import torch

    import saefast
    from saefast.cli import main as command

    def called(*arguments: object) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = command([str(argument) for argument in arguments])
        assert code == 0, (arguments, printed.getvalue())
        return printed.getvalue()

    torch.set_num_threads(1)
    for name in ("", "run", "train", "match", "evaluate", "report", "sweep", "convert"):
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            command([*([name] if name else []), "--help"])
    called("info")
    called("run", write_run(folder), "--out", folder / "run", "--until", "stability")
    called("evaluate", folder / "run", "probe", "--tasks", folder / "labelled.csv")
    called("report", folder / "run")
    sae = saefast.SAE(8, 32, k=4)
    saefast.load_sae(saefast.save_sae(sae, folder / "sae"))
    saefast.match_features(sae.W_dec.detach(), sae.W_enc.detach())
    saefast.verify(folder / "run")
    assert not attempts, attempts
    with contextlib.suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), 1)
    assert attempts, "the hook records no attempt"
    print("works without a network")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
