"""Facts, prompts for them, and which of them a model knows."""

import json
from pathlib import Path

import pytest
import torch
from helpers import linear_lm, tiny_lm

import saefast.evaluation
from saefast.evaluation.editing import knowledge as knowledge_module
from saefast.evaluation.editing.fact_prompts import answers, batches, padded, prompt
from saefast.evaluation.editing.facts import Facts, places
from saefast.evaluation.editing.knowledge import NOT_ASKED, Knowledge, known_facts
from saefast.evaluation.editing.ravel import accepted, ravel_facts
from saefast.lm.logits import Continuations, logits_at, shared_length

TABLE = Path(saefast.evaluation.editing.__file__).parent / "places.tsv"


def small_facts(**changes) -> Facts:
    fields = {
        "kind": "city",
        "entities": ("Rome", "Oslo", "Nice", "Minsk"),
        "values": {
            "country": (("Italy", "Italia"), ("Norway",), ("France",), ()),
            "colour": (("red",), ("red",), ("blue",), ("green",)),
        },
        "templates": {
            "country": ("{} lies in", "Oslo: Norway\n{}:"),
            "colour": ('The map shows {} in "',),
        },
        "template_splits": {"country": ("train", "test"), "colour": ("train",)},
    }
    return Facts(**{**fields, **changes})


def test_the_table_states_its_source_and_is_small():
    text = TABLE.read_text("ascii")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert any(
        "GeoNames (https://www.geonames.org), licensed under CC BY 4.0" in line for line in head
    )
    assert TABLE.stat().st_size < 100_000


def test_places_are_the_largest_ones():
    city, country = places()
    assert (city.kind, country.kind) == ("city", "country")
    assert city.entities[:3] == ("Shanghai", "Beijing", "Shenzhen")
    row = city.entities.index("Tokyo")
    assert {name: values[row] for name, values in city.values.items()} == {
        "country": ("Japan",),
        "continent": ("Asia",),
        "language": ("Japanese",),
        "currency": ("yen",),
    }
    row = country.entities.index("Iran")
    assert country.values["language"][row] == ("Persian", "Farsi", "Dari")
    assert country.values["capital"][row] == ("Tehran",)
    all_cities, all_countries = places(cities=600, countries=195)
    assert (len(all_cities.entities), len(all_countries.entities)) == (600, 195)
    assert all_cities.entities[: len(city.entities)] == city.entities
    counts: dict[str, int] = {}
    for values in all_cities.values["country"]:
        counts[values[0]] = counts.get(values[0], 0) + 1
    assert max(counts.values()) == 25
    with pytest.raises(ValueError, match="cities must be from 1 to 600"):
        places(cities=601)


def test_each_attribute_has_eight_templates_of_two_kinds_in_both_splits():
    for facts in places():
        for attribute in facts.attributes:
            texts, splits = facts.templates[attribute], facts.template_splits[attribute]
            assert len(set(texts)) == len(texts) == 8
            for split in ("train", "test"):
                solved = [
                    any(value in text for value in ("Austria", "Vienna"))
                    for text, its in zip(texts, splits, strict=True)
                    if its == split
                ]
                assert sorted(solved) == [False, False, True, True]


def test_facts_can_be_selected():
    facts = small_facts().select(entities=2, attributes=["colour"])
    assert facts.entities == ("Rome", "Oslo")
    assert facts.values == {"colour": (("red",), ("red",))}
    with pytest.raises(ValueError, match="attributes must be one of country, colour, got 'size'"):
        facts = small_facts().select(attributes=["size"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entities": ("a", "a", "b", "c")}, "must differ, but some are repeated"),
        ({"templates": {}}, "templates must be given for the attributes country, colour"),
        (
            {"templates": {"country": ("no place", "{}"), "colour": ("{}",)}},
            r"must hold {} once, where the entity goes, got 'no place'",
        ),
        (
            {"template_splits": {"country": ("train",), "colour": ("train",)}},
            "must have as many entries as",
        ),
        (
            {"entity_splits": ("train",)},
            "entity_splits must have as many entries as entities, 4, got 1",
        ),
        ({"entity_splits": ("train", "test", "dev", "test")}, "split must be one of train, val"),
    ],
)
def test_inconsistent_facts_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        small_facts(**changes)


def write_ravel(folder: Path) -> None:
    parts = {
        "entity_attributes": {
            "Rome": {"Country": "Italy"},
            "Oslo": {"Country": "South Korea", "X": ""},
        },
        "attribute_to_prompts": {"Country": ["%s is in", "Say {%s}:", "unused %s"]},
        "prompt_to_split": {"%s is in": "train", "Say {%s}:": "val"},
        "entity_to_split": {"Rome": "train", "Oslo": "val"},
    }
    for name, content in parts.items():
        (folder / f"ravel_city_{name}.json").write_text(json.dumps(content))


def test_ravel_files_are_read(tmp_path):
    write_ravel(tmp_path)
    (facts,) = ravel_facts(tmp_path)
    assert facts == Facts(
        kind="city",
        entities=("Rome", "Oslo"),
        values={"Country": (("Italy",), ("South Korea", "Korea"))},
        templates={"Country": ("{} is in", "Say {{}}:")},
        template_splits={"Country": ("train", "test")},
        entity_splits=("train", "validation"),
    )


@pytest.mark.parametrize(
    ("value", "attribute", "right"),
    [
        ("Italy", "Country", ("Italy",)),
        ("South Korea", "Country", ("South Korea", "Korea")),
        ("United Kingdom", "Country", ("United Kingdom", "England")),
        ("Mandarin Chinese", "Language", ("Mandarin Chinese", "Chinese")),
        ("English, Malay", "Language", ("English, Malay", "English", "Malay")),
        ("Rome, Italy", "Country", ("Rome, Italy",)),
        ("", "Country", ()),
    ],
)
def test_answers_accepted_by_ravel_are_aliases(value, attribute, right):
    assert accepted(value, attribute) == right


def test_missing_ravel_files_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"unpack data\.tgz"):
        ravel_facts(tmp_path)
    write_ravel(tmp_path)
    (tmp_path / "ravel_city_entity_to_split.json").unlink()
    with pytest.raises(ValueError, match=r"must hold a JSON object.*but it is missing"):
        ravel_facts(tmp_path)


@pytest.mark.parametrize("bos", [False, True])
def test_the_entity_ends_at_its_last_letter(bos):
    """The tokenizer may put BOS first, or split a letter into several tokens."""
    tokenizer = tiny_lm.tokenizer(bos=bos)
    for entity in ("Rome", "Z\u00fcrich \u00fc"):
        found = prompt(tokenizer, "In {} they speak ", entity)
        upto = tokenizer.decode(found.ids[: found.position + 1], skip_special_tokens=True)
        assert upto == f"In {entity}"
        assert tokenizer.decode(found.ids, skip_special_tokens=True) == f"In {entity} they speak"
        assert (found.ids[0] == tokenizer.bos_token_id) == bos


@pytest.mark.parametrize("bos", [False, True])
def test_answers_start_with_a_space_unless_a_quote_is_open(bos):
    tokenizer = tiny_lm.tokenizer(bos=bos)
    facts = small_facts()
    found = answers(tokenizer, facts, "country", "{} lies in")
    assert tokenizer.decode(list(found.continuations[1][0])) == " Norway"
    assert len(found.tokens) == 1  # all start with the space, a separate token here
    quoted = answers(tokenizer, facts, "colour", facts.templates["colour"][0])
    assert tokenizer.decode(list(quoted.continuations[0][0])) == "red"
    firsts = tokenizer.convert_ids_to_tokens(quoted.tokens.tolist())
    assert sorted(firsts) == ["b", "g", "r"]
    right = [[first for first, its in zip(firsts, row, strict=True) if its] for row in quoted.right]
    assert right == [["r"], ["r"], ["b"], ["g"]]
    logits = torch.zeros(1, 258)
    logits[0, quoted.tokens[firsts.index("g")]] = 1
    logits[0, 5] = 2  # no answer
    assert firsts[int(quoted.best(logits)[0])] == "g"


def test_slow_tokenizers_raise():
    with pytest.raises(TypeError, match="tokenizer must be a fast tokenizer"):
        prompt(object(), "{}", "Rome")


@pytest.mark.parametrize("make", [tiny_lm.llama, tiny_lm.gpt2])
@pytest.mark.parametrize("shared", [0, 1, 5])
def test_a_shared_prefix_does_not_change_logits(make, shared):
    model = make(dtype=torch.float64).model
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(258, (3, 9), generator=generator)
    ids[:, :shared] = ids[0, :shared]
    whole = logits_at(model, ids)
    positions = torch.tensor([0, 3])
    reader = Continuations(model, ids[0, :shared].tolist())
    for _ in range(2):  # the cache is not consumed
        found = reader.logits(ids[:, shared:], positions)
        torch.testing.assert_close(found, whole[:, positions + shared])
    torch.testing.assert_close(logits_at(model, ids, positions), whole[:, positions])


def test_texts_are_batched_by_length():
    assert list(batches([5, 1, 3, 1], 2)) == [[1, 3], [2, 0]]
    assert padded([[1, 2], [3]]).tolist() == [[1, 2], [3, 0]]


def asked_one_by_one(model, facts: Facts, attribute: str, template: int, entity: int):
    """Return rank and knowledge of a value from a forward pass for each alias."""
    text = facts.templates[attribute][template].replace("{}", facts.entities[entity])
    join = "" if text.endswith('"') else " "
    encode = lambda part: model.tokenizer(part)["input_ids"]  # noqa: E731
    start = encode(text)
    follow = [[encode(join + v) for v in its] for its in facts.values[attribute]]
    logits = model.model(torch.tensor([start])).logits[0, -1]
    mine = {each[0] for each in follow[entity]}
    all_firsts = {each[0] for its in follow for each in its}
    most = max(float(logits[token]) for token in mine)
    rank = sum(float(logits[token]) >= most for token in all_firsts - mine)
    known = False
    for each in follow[entity]:
        got = list(start)
        good = rank == 0 and float(logits[each[0]]) == most
        got.append(each[0])
        for token in each[1:]:
            good &= int(model.model(torch.tensor([got])).logits[0, -1].argmax()) == token
            got.append(token)
        known |= good
    return rank, known


def test_one_pass_gives_the_results_of_many():
    model = tiny_lm.llama(dtype=torch.float64)
    facts = small_facts(
        values={
            "country": (("Ia", "a"), ("Nb", "b"), ("Fc",), ()),
            "colour": (("r", "q"), ("r",), ("b",), ("g",)),
        }
    )
    its = known_facts(model, facts, batch_size=3, progress=False).kinds[0]
    for attribute in facts.attributes:
        for entity in range(4):
            for template in range(len(facts.templates[attribute])):
                rank = int(its.rank[attribute][entity, template])
                known = bool(its.known[attribute][entity, template])
                text = facts.templates[attribute][template]
                if not facts.values[attribute][entity] or facts.entities[entity] in text:
                    assert (rank, known) == (NOT_ASKED, False)
                else:
                    expected = asked_one_by_one(model, facts, attribute, template, entity)
                    assert (rank, known) == expected


def test_aliases_count():
    """The linear model answers colour0, which is an alias or not."""
    model, facts = linear_lm.linear_lm(), linear_lm.facts().select(entities=20)
    values = facts.values["colour"]
    shifted = tuple((f"colour{(int(its[0][-1]) + 1) % linear_lm.VALUES}", *its) for its in values)
    known = []
    for with_alias in (shifted, tuple(its[:1] for its in shifted)):
        changed = Facts(**{**vars(facts), "values": {**facts.values, "colour": with_alias}})
        known.append(known_facts(model, changed, progress=False).kinds[0])
    assert known[0].known["colour"].all()
    assert not known[1].known["colour"].any()
    assert known[0].known["size"].all()


@pytest.fixture
def linear_knowledge() -> Knowledge:
    return known_facts(linear_lm.linear_lm(), linear_lm.facts().select(entities=9), progress=False)


def test_knowledge_is_summarised(linear_knowledge):
    assert linear_knowledge.lines()[0] == (
        "linear knows the colour of 9 of 9 entities of kind thing with the best of 4 templates, of "
        "9 with the worst alone and of 9 with the best alone"
    )
    row = linear_knowledge.to_table().to_pylist()[1]
    assert row == {
        "kind": "thing",
        "attribute": "colour",
        "template": "number 1 says that the colour of {} is",
        "split": "test",
        "asked": 9,
        "known": 9,
    }
    its = linear_knowledge.kinds[0]
    its.known["colour"][:4] = False
    its.known["size"][2:] = False
    assert (its.count("colour"), its.count("size")) == (5, 2)
    assert its.count_both("colour", "size") == 0
    assert its.count_both("colour", "shape") == 5


def test_answers_are_cached_for_each_model_and_facts(tmp_path, monkeypatch):
    model, facts = linear_lm.linear_lm(), linear_lm.facts().select(entities=9)
    first = known_facts(model, facts, out=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("thing-")
    ask = knowledge_module._ask

    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(knowledge_module, "_ask", refuse)
    again = known_facts(model, [facts], out=tmp_path, progress=False)
    for name in facts.attributes:
        assert torch.equal(again.kinds[0].rank[name], first.kinds[0].rank[name])
        assert torch.equal(again.kinds[0].known[name], first.kinds[0].known[name])
    monkeypatch.setattr(knowledge_module, "_ask", ask)
    known_facts(model, facts.select(entities=8), out=tmp_path, progress=False)
    turned = linear_lm.linear_lm(turned=True)
    known_facts(turned, facts, out=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 3


def test_bad_input_raises():
    with pytest.raises(TypeError, match=r"facts\[0\] must be a Facts record, got str"):
        known_facts(linear_lm.linear_lm(), ["city"])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        known_facts(linear_lm.linear_lm(), linear_lm.facts(), batch_size=0)


@pytest.mark.parametrize(
    ("texts", "length"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 1), ([[7, 8]], 1), ([[1], [2, 1]], 0)],
)
def test_each_text_has_a_token_after_the_shared_prefix(texts, length):
    assert shared_length(texts) == length
