"""The pieces of the recipe: rows, schedule, near attention, optimizer, and the forward pass against transformers."""

import random
import string
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from kvfoot.core.errors import UsageError
from kvfoot.evaluate.tasks import chain, multiquery, multivalue, passkey, path, phrases_train, places, variables
from kvfoot.evaluate.tasks.corpus import common_words, read_corpus
from kvfoot.evaluate.tasks.deeds_train import deed, deed_ask, purposes
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Turn
from kvfoot.evaluate.tasks.split import word_side
from kvfoot.evaluate.tasks.wording_train import TrainWording
from kvfoot.train.recall.books import encode_books
from kvfoot.train.recall.checkpoint import load_model, save_model
from kvfoot.train.recall.mix import FAMILIES, GROUPS, MIXES
from kvfoot.train.recall.model import Net, init_parameters, streaming_mask
from kvfoot.train.recall.muon import orthogonal
from kvfoot.train.recall.options import ModelShape, Recipe
from kvfoot.train.recall.plan import Plan
from kvfoot.train.recall.scores import wilson
from kvfoot.train.recall.spread import (
    BLOCK,
    ROUTES,
    Router,
    Split,
    far_mask,
    near_attention,
    offset_of,
    routed_attention,
    routes,
)
from kvfoot.train.recall.vocab import ASSISTANT, BOS, END, SPECIALS, USER, train_tokenizer
from kvfoot.train.recall.writer import ANSWER, FILLER, FORK, SILENT, Writer

SHAPE = ModelShape(vocabulary=512, layers=4, width=64, heads=4, kv_heads=2, head_dim=16, mlp=96, positions=1024)


@pytest.fixture(scope="module")
def writer(data):
    corpus = read_corpus(data, "train")
    tokenizer = train_tokenizer(corpus.books.values(), 512)
    return Writer(tokenizer, encode_books(corpus.books, tokenizer), corpus, TrainWording())


def test_digits_and_capitals_stand_alone(writer):
    tokens = writer.tokenizer.encode("XKQP 4711").tokens
    assert tokens == ["X", "K", "Q", "P", "Ġ", "4", "7", "1", "1"]
    assert writer.tokenizer.decode(writer.tokenizer.encode(" a XK-b 12é\n").ids) == " a XK-b 12é\n"
    assert writer.tokenizer.get_vocab_size() == 512
    assert [writer.tokenizer.token_to_id(text) for text in SPECIALS] == list(range(16))


def test_a_word_after_a_space_begins_with_a_token_of_both(writer):
    for letter in string.ascii_letters:
        for rest in ("", "ala", "zqx", "ne"):
            assert writer.tokenizer.encode(f" {letter}{rest}").tokens[0].startswith(f"Ġ{letter}")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_documents_have_their_form(writer, family):
    draw = Draw(f"form/{family}", writer.corpus, writer.wording, writer.count)
    module = FAMILIES[family]
    document = draft = None
    while document is None or draft is None:  # some shapes do not fit
        draft = module.draft(draw, module.vary(draw, 1500), 1500)
        document = writer.assemble(draw, draft, 1500) if draft else None
    tokens, codes = document.tokens.tolist(), document.codes.tolist()
    assert tokens[:2] == [BOS, USER]
    assert tokens[-1] == END
    assert codes[-1] in (ANSWER, FORK)
    assert tokens.count(ASSISTANT) == tokens.count(END) == tokens.count(USER)
    if family == "quote":  # running text is hidden in part (loop.py), a text to be quoted is not
        assert FILLER not in codes
    # an answer is what stands between <|assistant|> and <|end|>, and nothing else is
    spoken = False
    for token, code in zip(tokens, codes, strict=True):
        assert (code in (ANSWER, FORK)) == spoken
        spoken = (spoken or token == ASSISTANT) and token != END
    first = tokens.index(ASSISTANT)
    assert writer.tokenizer.decode(tokens[first + 1 : tokens.index(END)]) == draft.turns[0].answer


def test_forks_are_where_an_answer_may_end(writer):
    """`<|end|>`, the first token of every later unit, the marks after the cells of a table; none in a single answer."""
    draw = Draw("forks", writer.corpus, writer.wording, writer.count)

    def forks(*turns):
        document = writer.assemble(draw, Draft("", ("context",), turns, scatter=False), 400)
        spoken = document.codes != SILENT
        return writer.tokenizer.decode(document.tokens[document.codes == FORK].tolist(), skip_special_tokens=False), (
            spoken.sum() - (document.codes == FORK).sum()
        )

    assert forks(Turn("which", (" 12", ", 34", ", 56")))[0] == ",,<|end|>"
    assert forks(Turn("which", (" 12",)), Turn("which", (" 34", ", 5")))[0] == "<|end|>,<|end|>"
    table = forks(Turn("rows", ("1\t2\n", "3\t4\n")))
    assert table == ("\t\n3\t\n<|end|>", 3)  # the first token of the second row, too
    assert forks(Turn("which", (" 12",)))[0] == ""


def test_pieces_encode_as_the_whole_text_does(writer):
    rows = [writer.row(f"whole/{i}", 600, MIXES["main"]) for i in range(60)]
    same = 0
    for row in rows:
        text = writer.tokenizer.decode(row.tokens.tolist(), skip_special_tokens=False)
        same += writer.tokenizer.encode(text).ids == row.tokens.tolist()
    assert same >= 45  # the rest are cut in the middle of a word, or a mark stands beside an item


def test_a_row_is_a_function_of_its_seed(writer):
    a, b, c = (writer.row(seed, 768, MIXES["start"]) for seed in ("x", "x", "y"))
    assert len(a.tokens) == len(a.codes) == 768
    assert np.array_equal(a.tokens, b.tokens)
    assert not np.array_equal(a.tokens, c.tokens)
    assert {writer.row(f"g{i}", 512, MIXES["main"]).group for i in range(40)} == set(range(len(GROUPS)))


def test_mixes_add_up_and_name_known_families():
    grouped = [family for group in GROUPS for family in group]
    assert sorted(grouped) == sorted(FAMILIES)
    for mix in MIXES.values():
        assert set(mix.shares) <= set(FAMILIES)
        for group in range(len(GROUPS)):
            assert sum(mix.of_group(group).values()) == pytest.approx(1.0)


def test_a_plan_lasts_its_minutes_and_decays():
    plan = Plan(Recipe(minutes=10))
    assert plan.elapsed(plan.steps) == pytest.approx(10 * 60 - 90, rel=0.01)
    assert plan.at(0).scale == pytest.approx(1 / 60)
    assert plan.at(100).scale == 1.0
    assert plan.at(plan.steps - 1).scale == pytest.approx(0.02)
    assert plan.at(0).length in (512, 1024)
    assert {plan.at(step).length for step in range(plan.ends[2], plan.ends[3])} == {4096, 16384}
    assert plan.at(777) == Plan(Recipe(minutes=10)).at(777)
    assert not any(plan.at(step).routed for step in range(plan.steps))
    single = Plan(Recipe(plan="single", minutes=13.5))
    assert single.elapsed(single.steps) == pytest.approx(13.5 * 60 - 90, rel=0.01)
    assert single.at(single.steps - 1).scale == pytest.approx(0.02)
    assert [single.at(step).text for step in (0, single.steps - 1)] == [2.0, 0.3]
    share = [single.at(step).routed for step in range(single.ends[3], single.steps)]
    assert 0.2 < sum(share) / len(share) < 0.4
    assert not any(Plan(Recipe(plan="single", spread=0.0)).at(step).routed for step in range(0, 5000, 7))
    routes = Plan(Recipe(plan="routes"))
    routed = [routes.at(step).routed for step in range(routes.ends[2], routes.ends[3])]
    assert 0.4 < sum(routed) / len(routed) < 0.6
    assert not any(routes.at(step).routed for step in range(routes.ends[3], routes.steps))
    with pytest.raises(UsageError, match="did you mean recall"):
        Plan(Recipe(plan="recal"))
    with pytest.raises(UsageError, match="multiple of 16384"):
        Plan(Recipe(batch=65536))


@pytest.mark.parametrize("offset", [0, BLOCK // 2, 37])
def test_near_attention_is_attention_within_blocks(offset):
    torch.manual_seed(offset)
    q, k, v = (torch.randn(2, 3, 3 * BLOCK, 8) for _ in range(3))
    got = near_attention(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, is_causal=True), q, k, v, offset)
    i = torch.arange(3 * BLOCK)
    block = (i - offset).div(BLOCK, rounding_mode="floor")
    seen = (i[None] <= i[:, None]) & (block[:, None] == block[None])
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, v, attn_mask=seen), atol=1e-6, rtol=0)


def test_routes_give_every_group_its_own_heads():
    assert len({head for heads in ROUTES for head in heads}) == 15
    router = Router(8, 3, len(GROUPS))
    assert sum(map(len, router.far)) == 15
    assert router.far[0] == []
    assert router.far[3] == [(0, 1), (1, 2), (2, 3)]
    for group in range(5):
        assert sum(owner == group for heads in router.far for _, owner in heads) == 3
    assert sorted(head for heads in routes(4, 2, 5) for head in heads) == [(a, b) for a in (1, 2, 3) for b in (0, 1)]


def test_a_routed_row_sees_far_through_its_heads_only():
    parameters = init_parameters(SHAPE, 1, 1.4)
    for name, value in parameters.items():
        parameters[name] = value + 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    net = Net(SHAPE, parameters, torch.float32)
    tokens = torch.randint(0, 512, (5, 768), generator=torch.Generator().manual_seed(3))
    far = net.router.split(torch.arange(5))
    routed, free = net.hidden(tokens, far).view(5, 768, -1), net.hidden(tokens).view(5, 768, -1)
    torch.testing.assert_close(routed[:, : BLOCK // 2], free[:, : BLOCK // 2], atol=1e-5, rtol=1e-5)
    assert (routed - free)[:, BLOCK:].abs().max() > 1e-3
    assert net.router.far[0] == []  # the first layer stays near
    # a row of another group has other heads
    swapped = net.hidden(tokens, net.router.split(torch.tensor([1, 0, 2, 3, 4]))).view(5, 768, -1)
    torch.testing.assert_close(swapped[2:], routed[2:], atol=1e-5, rtol=1e-5)
    assert (swapped - routed)[:2, BLOCK:].abs().max() > 1e-4


@pytest.mark.parametrize("layer", [3, 4])
def test_routed_attention_is_attention_under_its_mask(layer):
    """Values and gradients; groups with two rows, one and none."""
    torch.manual_seed(layer)
    router, length = Router(8, 3, len(GROUPS)), 2 * BLOCK
    split = router.split(torch.tensor([0, 1, 3, 0]))
    assert [rows.tolist() for rows in split.rows] == [[0, 3], [1], [], [2], []]
    q, k, v = (torch.randn(4, heads, length, 8, requires_grad=True) for heads in (6, 3, 3))

    def causal(a, b, c):
        return F.scaled_dot_product_attention(a, b, c, is_causal=True)

    mask = far_mask(router, layer, split, 4, length, 3)
    assert mask[0, 0, -1].all() == (layer == 4)  # (4, 0) is of group 0, (3, 0) is not
    assert mask[1, 0, -1].all() == (layer == 3)
    got = routed_attention(causal, causal, q, k, v, router.far[layer], split, offset_of(layer))
    wide = [x.repeat_interleave(2, 1) for x in (k, v)]
    expected = F.scaled_dot_product_attention(q, *wide, attn_mask=mask.repeat_interleave(2, 1))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    for mine, theirs in zip(
        torch.autograd.grad(got.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    near = routed_attention(causal, causal, q, k, v, router.far[layer], Split((torch.tensor([]).long(),) * 5), 0)
    assert (near - got).abs().max() > 0.1


def test_streaming_mask_is_sinks_and_window():
    mask = streaming_mask(10, 2, 3, torch.device("cpu"))
    assert mask[9].tolist() == [True, True, *[False] * 5, True, True, True]
    assert mask.sum(1).tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5]


def test_muon_updates_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((2, 48, 32), (1, 32, 96)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(*shape)))
        assert values.min() > 0.4
        assert values.max() < 1.4


def test_the_forward_pass_is_that_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    parameters = init_parameters(SHAPE, 7, 1.4)
    generator = torch.Generator().manual_seed(8)
    parameters = {
        name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in parameters.items()
    }
    save_model(parameters, SHAPE, tmp_path)
    shape, rounded = load_model(tmp_path)
    assert shape == SHAPE
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 512, (2, 300), generator=generator)
    net = Net(shape, rounded, torch.float32)
    with torch.no_grad():
        theirs = model(tokens).logits
        ours = net.logits(net.hidden(tokens)).view(theirs.shape)
    assert (ours - theirs).abs().max() < 1e-4
    _, nll = net.loss(tokens, torch.ones(2, 300))
    expected = F.cross_entropy(theirs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(2, -1)
    torch.testing.assert_close(nll[:, :-1], expected, atol=1e-4, rtol=1e-4)


def test_wilson_intervals():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert wilson(1.0, 200)[0] == pytest.approx(0.9812, abs=1e-3)


def test_a_saved_tokenizer_reads_back(tmp_path, writer):
    from kvfoot.train.recall.vocab import save_tokenizer

    save_tokenizer(writer.tokenizer, tmp_path, 1024)
    assert (
        Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a 12").ids == writer.tokenizer.encode("a 12").ids
    )


def test_a_table_may_have_columns_that_are_not_asked_for(writer):
    from kvfoot.evaluate.tasks import table

    draw = Draw("extra", writer.corpus, writer.wording, writer.count)
    draft = table.draft(draw, table.TableShape(5, None, 2, 0, False, 2), 1500)
    rows = [unit.rstrip("\n").split("\t") for unit in draft.turns[0].units]
    assert [len(row) for row in rows] == [2] * 5
    assert all(cell in draft.items[0] for row in rows for cell in row)


def test_ragged_documents_have_answers_of_unequal_length(writer):
    draw = Draw("ragged", writer.corpus, writer.wording, writer.count)
    drafts = (
        path.draft(draw, path.PathShape((1, 12), 6, ragged=True), 4000),
        chain.draft(draw, chain.ChainShape(12, 6, ragged=True), 4000),
        variables.draft(draw, variables.VariableShape(6, 4, 6, ragged=True), 4000),
        multiquery.draft(draw, multiquery.MultiQueryShape(8, 8, 8, ragged=True), 4000),
    )
    for draft in drafts:
        assert len({len(turn.units) for turn in draft.turns}) >= 3


def test_a_route_leads_past_towns_that_look_like_its_goal(writer):
    draw = Draw("twins", writer.corpus, writer.wording, writer.count)
    draft = path.draft(draw, path.PathShape((10, 10), 3, twins=3), 4000)
    for turn in draft.turns:
        ends = [unit.strip().removesuffix(".").partition(" to ")[2] for unit in turn.units]
        goal, way = ends[-1], ends[:-1]
        assert goal not in way
        assert any(town[:2] == goal[:2] or town[-2:] == goal[-2:] or goal in town or town in goal for town in way)
        # the answer can be read off the text
        assert all(sum(town in line for line in draft.items[0].splitlines()) >= 1 for town in ends)


def test_made_up_words_begin_with_every_letter():
    rng = random.Random(4)
    assert {places.syllables(rng)[0] for _ in range(3000)} == set(string.ascii_uppercase)
    towns = {word[0] for _ in range(3000) for word in places.made_up(rng, "train").split()}
    assert towns >= set(string.ascii_uppercase)


@pytest.mark.parametrize("kind", ["word", "noun", "adjective"])
def test_one_word_in_five_is_made_up_and_two_are_of_the_books(writer, kind):
    common = {"letter", "went", "much", "soft", "steps"}
    corpus = replace(writer.corpus, vocabulary=replace(writer.corpus.vocabulary, common=tuple(sorted(common))))
    draw = Draw("made up", corpus, writer.wording, writer.count)
    listed = {*corpus.vocabulary.words}
    assert not listed & common
    drawn = [getattr(draw, kind)() for _ in range(2000)]
    assert 0.35 < sum(word in common for word in drawn) / 2000 < 0.45
    assert 0.12 < sum(word not in listed | common for word in drawn) / 2000 < 0.22
    assert {word_side(word) for word in drawn} == {"train"}


def test_words_of_the_books_are_whole_and_neither_names_nor_rare():
    text = "The soft letter's steps: soft-spoken Letter went, went. much said"
    assert common_words([text, "soft steps; steps—much"], "train", least=2) == ("much", "soft", "steps", "went")


def test_passkeys_of_one_document_have_wordings_of_their_own(writer):
    draw = Draw("mixed", writer.corpus, writer.wording, writer.count)
    draft = passkey.draft(draw, passkey.PasskeyShape(12, mixed=True), 4000)
    assert len({turn.question.split()[0] for turn in draft.turns}) >= 4
    asked = [draw.wording.passkey(draw) for _ in range(2000)]
    verbal = sum(any(f" {verb}" in lookup.item for _, verb in phrases_train.PURPOSE) for lookup in asked)
    assert 0.07 < verbal / 2000 < 0.6
    assert all(lookup.item.count("{v}") and "{v}" not in lookup.ask for lookup in asked)


def test_training_wordings_are_what_they_are_meant_to_be(writer):
    draw = Draw("wordings", writer.corpus, writer.wording, writer.count)
    # a chain's end can always be read
    assert all(
        "{s}" in listing.ask and "{e}" in listing.ask for listing in (draw.wording.chain(draw) for _ in range(300))
    )
    # clauses around a verb hold their places once, and their questions do not give the answer away
    for _ in range(300):
        clause, asked = deed(draw), deed_ask(draw)
        assert (clause.count("{k}"), clause.count("{v}")) == (1, 1)
        assert (asked.count("{k}"), asked.count("{v}")) == (1, 0)
        clause, asked = purposes(draw)
        assert (clause.count("{t}"), clause.count("{v}")) == (1, 1)
        assert (asked.count("{t}"), asked.count("{v}")) == (1, 0)
    # a number is never asked for as words, nor words as a number
    for kind, other in (("number", "words"), ("words", "digits")):
        assert not any(f" {other}" in purposes(draw, kind)[1] for _ in range(300))
    # some lines of a route name a town again
    lines = [draw.wording.path(draw).item for _ in range(600)]
    assert 90 < sum(line.count("{a}") > 1 or line.count("{b}") > 1 for line in lines) < 300
    # lists of few keys in a long context, of unequal length
    shapes = [multivalue.vary(draw, 8000) for _ in range(400)]
    assert 200 < sum(shape.keys <= 8 for shape in shapes) < 320
    assert 60 < sum(shape.equal for shape in shapes) < 180
