"""Rules that explain latents, against predicates planted by hand."""

import io
import keyword
import tokenize
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.planted_text import WordTokenizer, planted, planted_truth, write_text

from saefast.evaluation.explaining import syntax
from saefast.evaluation.explaining.contexts import TokenText, text_of_sequences, token_text
from saefast.evaluation.explaining.predicates import FAMILIES
from saefast.evaluation.explaining.rule_reader import Rule, RuleReader
from saefast.evaluation.explaining.rule_search import RuleSearch
from saefast.evaluation.explaining.rules import find_rules


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TokenText:
    folder = tmp_path_factory.mktemp("text") / "store"
    return token_text(folder, write_text(folder, contexts=120))


def test_planted_predicates_are_found_exactly(text: TokenText) -> None:
    """A latent defined by a predicate is explained by it, with score 1."""
    wanted = planted_truth(text)
    (found,) = find_rules(text, planted(list(wanted.values())), progress=False)
    kinds = ["surface"] * 5 + ["context"] * 3 + ["topic"]
    for number, (words, kind) in enumerate(zip(wanted, kinds, strict=True)):
        # The tokens of a union are ordered by their frequency in the text.
        assert sorted(found.texts[number].split()) == sorted(words.split())
        assert found.kinds[number] == kind
        assert found.balanced_accuracy[number] == 1.0
        assert found.precision[number] == found.recall[number] == 1.0
        assert found.null[number] < 0.9


def test_scrambled_latents_are_unclear(text: TokenText) -> None:
    """Of latents that fire on random rows of their contexts, 95 of 100 are unclear."""
    generator = np.random.default_rng(5)
    rates = generator.uniform(0.001, 0.02, 600)
    latents = planted([generator.random(text.rows) < rate for rate in rates])
    (found,) = find_rules(text, latents.scrambled(text.context_starts, 77), progress=False)
    unclear = Counter(found.kinds)["unclear"]
    assert unclear >= 600 * 0.95 - 3 * np.sqrt(600 * 0.95 * 0.05)
    assert unclear < 600  # chance reaches this limit


def test_search_counts_the_rows_of_rules(text: TokenText) -> None:
    """The counts of sparse products equal those of the rules executed row by row."""
    generator = np.random.default_rng(6)
    noisy = [its & (generator.random(text.rows) < 0.8) for its in planted_truth(text).values()]
    latents = planted(noisy)
    found = RuleSearch(text).best(latents)
    half, reader = ~text.explaining, RuleReader(text)
    families = set()
    for latent, rule in enumerate(found.rules):
        assert rule is not None
        families.add(rule.family)
        holds = reader.holds(rule)[half]
        fires = noisy[latent][half]
        assert found.held[latent] == holds.sum()
        assert found.hits[latent] == (holds & fires).sum()
        assert found.fired[latent] == fires.sum()
    assert len(families) >= 6


def test_rules_do_not_depend_on_the_scoring_half(text: TokenText) -> None:
    fires = planted_truth(text)['the token "the"'].copy()
    number = planted_truth(text)["a number"]
    fires[~text.explaining] = number[~text.explaining]
    (found,) = find_rules(text, planted([fires]), progress=False)
    assert found.texts == ['the token "the"']
    assert found.recall[0] == 0.0
    assert found.kinds == ("unclear",)


def test_rules_are_equal_for_several_saes_and_repeated_calls(text: TokenText) -> None:
    generator = np.random.default_rng(7)
    first = planted([generator.random(text.rows) < 0.01 for _ in range(30)])
    second = planted(list(planted_truth(text).values()))
    together = find_rules(text, [first, second], progress=False)
    (alone,) = find_rules(text, second, progress=False)
    assert together[1].texts == alone.texts
    np.testing.assert_array_equal(together[1].null, alone.null)


def test_silent_and_rare_latents_have_no_rule(text: TokenText) -> None:
    rare = np.zeros(text.rows, dtype=bool)
    rare[np.flatnonzero(text.explaining)[5]] = True
    (found,) = find_rules(text, planted([np.zeros_like(rare), rare]), progress=False)
    assert found.kinds == ("", "unclear")
    assert found.fired.tolist() == [0, 1]
    assert np.isnan(found.balanced_accuracy).all()


def test_rules_can_be_applied_to_other_text() -> None:
    tokenizer = WordTokenizer()
    text = text_of_sequences(
        [tokenizer("The cat jumped. It jumped 12 times, the end.")["input_ids"]], tokenizer
    )

    reader = RuleReader(text)

    def held(family: str, *arguments: str) -> list[str]:
        holds = reader.holds(Rule(family, arguments))
        return [piece for piece, its in zip(text.pieces(0, text.rows), holds, strict=True) if its]

    assert held("token", "the") == ["The", " the"]
    assert held("affix", "*ed") == [" jumped", " jumped"]
    assert held("affix", "ca*") == [" cat"]
    assert held("affix", "*im*") == [" times"]
    assert held("shape", "a number") == [" 12"]
    assert held("shape", "punctuation") == [".", ",", "."]
    assert held("shape", "a token that begins with a capital letter") == ["The", " It"]
    assert held("previous", "the", ".") == [" cat", " It", " end"]
    assert held("pair", "the\0end") == [" end"]
    assert held("place", "a token that occurred before in the same passage") == [
        *(" jumped", " the", "."),
    ]
    assert held("place", "the first token of a text") == ["The"]
    assert held("topic", "cat") == text.pieces(0, text.rows)
    assert held("topic", "dog") == []
    assert held("genre", "code") == []


def test_a_piece_inside_a_word_continues_it() -> None:
    class Pieces(WordTokenizer):
        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            pieces = text.split("|")
            return {"input_ids": [self._numbers.setdefault(p, len(self._numbers)) for p in pieces]}

    tokenizer = Pieces()
    sequences = [tokenizer(text)["input_ids"] for text in ("un|happi|ness| is|.|so", "then")]
    text = text_of_sequences(sequences, tokenizer)
    assert RuleReader(text).holds(Rule("shape", ("a piece inside a word",))).tolist() == [
        *(False, True, True, False, False, False),
        False,
    ]


def test_rules_in_words() -> None:
    assert Rule("token", ("\n", "a", "b")).text == 'the token "\\n", "a" or "b"'
    assert Rule("affix", ("un*",)).text == 'a token that begins with "un"'
    assert Rule("affix", ("*ly",)).text == 'a token that ends with "ly"'
    assert Rule("affix", ("*oo*",)).text == 'a token that contains "oo"'
    assert Rule("topic", ("socket", "server")).text == 'text that mentions "socket" or "server"'
    assert {family.kind for family in FAMILIES.values()} == {
        *("surface", "context", "syntax", "topic"),
    }


def test_classes_of_code_match_tokenize() -> None:
    """On whole modules, lexemes and classes equal those of Python's tokenizer."""
    for module in (io, tokenize, keyword):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        lines = np.cumsum([0, *map(len, source.splitlines(keepends=True))])
        lexemes = {span[0]: (source[slice(*span)], kind) for span, kind in syntax._lexemes(source)}
        names = {
            tokenize.COMMENT: "comment",
            tokenize.STRING: "string",
            tokenize.NUMBER: "number",
        }
        checked = 0
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            begin = int(lines[token.start[0] - 1]) + token.start[1]
            if token.type in names:
                wanted = names[token.type]
            elif token.type == tokenize.NAME and keyword.iskeyword(token.string):
                wanted = "keyword"
            else:
                continue
            found, kind = lexemes[begin]
            assert (found, syntax.CLASSES[kind]) == (token.string, wanted)
            checked += 1
        assert checked > 30


def test_names_are_definitions_or_calls() -> None:
    pieces = ["def", " run", "(", "self", "):", "\n", "    stop", "(", "self", ".", "name", ")"]
    found = [syntax.CLASSES[number] if number >= 0 else "" for number in syntax.classes_of(pieces)]
    assert found == [
        *("keyword", "definition", "operator", "", "operator", "", "call"),
        *("operator", "", "operator", "", "operator"),
    ]
    assert syntax.classes_of(["x = 'un", "closed", "\n", "y"])[1:] == [
        *(syntax.CLASSES.index("string"), -1, -1),
    ]


def test_syntax_is_a_kind_of_explanation(text: TokenText) -> None:
    family = FAMILIES["class"].build(text)
    comment = family.attribute == syntax.CLASSES.index("comment")
    assert comment.sum() > 50
    (found,) = find_rules(text, planted([comment]), progress=False)
    assert found.texts == ["a comment in code"]
    assert found.kinds == ("syntax",)
    assert found.balanced_accuracy[0] == 1.0
