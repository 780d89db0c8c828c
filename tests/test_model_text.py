"""Captions to contexts against reference outputs of upstream AnyText2.

Token ids come with the references, so CLIP's vocabulary is not needed; the tokenizer itself is tested on the
embedded teacher's vocabulary.
"""

import html
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ftfy
import pytest
import torch
from reference_weights import load_reference, relative_error
from small_models import miniature, reference_model, reference_scene, small_batch

from anytext_lcm.model.conditioning import line_inputs
from anytext_lcm.model.text_encoder import CHUNK, CONTEXT_LENGTH, TextEncoder, Tokenizer, clean

START, END, STAR = 49406, 49407, 265
TOKENIZER = "anytext_lcm/assets/tokenizer"


@pytest.fixture(scope="module")
def reference():
    return load_reference("13_text_encoder")


@pytest.fixture(scope="module")
def model():
    return reference_model()


@pytest.fixture(scope="module")
def embeddings(model):
    """One (n_i, 768) per sample of the reference scene."""
    scene = reference_scene()
    with torch.no_grad():
        return model.embedding_manager.line_embeddings(line_inputs(scene), model.text_predictor)


def ids(reference, name):
    return torch.from_numpy(reference[name])


def caption(*tokens, length=CONTEXT_LENGTH):
    """Start token, tokens, end tokens up to `length`."""
    return [START, *tokens, *[END] * (length - 1 - len(tokens))]


# --- against upstream -----------------------------------------------------------------------------------


def test_line_embeddings_of_the_scene(reference, embeddings):
    assert [len(rows) for rows in embeddings] == [2, 3]
    assert relative_error(torch.cat(embeddings), reference["embs"]) < 2e-5


@torch.no_grad()
def test_both_contexts(model, reference, embeddings):
    image = model.image_context(ids(reference, "img_ids"), embeddings)
    text = model.text_context(ids(reference, "txt_ids"), embeddings)
    assert relative_error(image[..., ::6], reference["img_ctx_every6th_ch"]) < 1e-5
    assert relative_error(text[:, :20], reference["txt_ctx"]) < 1e-5
    assert relative_error(text[..., ::6], reference["txt_ctx_every6th_ch"]) < 1e-5


@torch.no_grad()
def test_long_captions_become_chunks(model, reference, embeddings):
    long = ids(reference, "long_ids")
    assert torch.equal(
        model.cond_stage_model.chunk(long).transpose(0, 1), ids(reference, "long_chunks")
    )  # stored chunk first
    context = model.image_context(long, embeddings)
    assert tuple(context.shape) == tuple(reference["long_ctx_shape"])
    assert relative_error(context[..., ::24], reference["long_ctx_every24th_ch"]) < 1e-5


@torch.no_grad()
def test_the_empty_caption_is_one_chunk_of_ends(model, reference):
    empty = torch.tensor([[START, END]])
    assert model.cond_stage_model.chunk(empty).tolist() == [[caption()]]
    image, text = model.image_context(empty, None), model.text_context(torch.tensor([caption()]), None)
    assert relative_error(image[..., ::24], reference["uncond_img_ctx_every24th_ch"]) < 1e-5
    assert torch.equal(image, text)


@torch.no_grad()
def test_tower_without_line_embeddings(model, reference):
    plain = model.text_context(ids(reference, "txt_ids"), None)
    assert relative_error(plain[..., ::24], reference["plain_txt_ctx_no_manager_every24th_ch"]) < 1e-5


@torch.no_grad()
def test_a_star_in_the_image_caption_takes_the_same_embedding(model, reference, embeddings):
    """As upstream, whose two contexts for the same ids do not differ."""
    text = ids(reference, "txt_ids")
    image = model.image_context(text, embeddings)
    assert torch.equal(image, model.text_context(text, embeddings))
    assert reference["star_in_image_caption_max_diff"] == 0


# --- chunks and the placeholder counter -----------------------------------------------------------------


@pytest.mark.parametrize(
    "words, chunks", [(0, 1), (1, 1), (CHUNK - 1, 1), (CHUNK, 1), (CHUNK + 1, 2), (2 * CHUNK, 2), (151, 3)]
)
def test_chunk_counts_and_contents(words, chunks):
    encoder = TextEncoder(width=2, layers=1, heads=1, intermediate=2)
    tokens = list(range(1000, 1000 + words))
    out = encoder.chunk(torch.tensor([[START, *tokens, END]]))
    assert out.shape == (1, chunks, CONTEXT_LENGTH)
    assert (out[..., 0] == START).all() and (out[..., -1] == END).all()
    assert [t for t in out[0, :, 1:-1].flatten().tolist() if t != END] == tokens


@torch.no_grad()
def test_the_counter_runs_on_from_chunk_to_chunk(model, embeddings):
    """Line 0 in the first chunk, lines 1 and 2 in the second: each chunk equals the one written by hand."""
    tokens = [STAR] + [320] * 80 + [STAR, 267, STAR]
    context = model.image_context(torch.tensor([[START, *tokens, END]]), embeddings[1:])
    tower = model.cond_stage_model.text_model
    for chunk, lines in ((0, {1: 0}), (1, {7: 1, 9: 2})):
        row = torch.tensor([caption(*tokens[chunk * CHUNK : (chunk + 1) * CHUNK])])
        embeds = tower.embed(row)
        for place, line in lines.items():
            assert row[0, place] == STAR
            embeds[0, place] = embeddings[1][line]
        by_hand = tower(embeds)
        assert torch.equal(context[:, chunk * CONTEXT_LENGTH : (chunk + 1) * CONTEXT_LENGTH], by_hand)


@torch.no_grad()
def test_more_stars_than_lines_are_refused(model, embeddings):
    stars = torch.tensor([caption(STAR, STAR, STAR)])
    with pytest.raises(ValueError, match="3 placeholders '\\*' but 2"):
        model.text_context(stars, embeddings[:1])


# --- the tower ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_tower_is_causal_and_each_row_stands_alone(model):
    row = torch.tensor([caption(*range(500, 560))])
    other = row.clone()
    other[0, 40] = 7
    tower = model.cond_stage_model.text_model
    a, b = tower(tower.embed(row)), tower(tower.embed(other))
    assert torch.equal(a[:, :40], b[:, :40]) and not torch.equal(a[:, 40:], b[:, 40:])
    both = tower(tower.embed(torch.cat([row, other])))
    torch.testing.assert_close(both, torch.cat([a, b]), rtol=1e-4, atol=1e-5)


# --- the tokenizer --------------------------------------------------------------------------------------


def test_threads_do_not_cut_each_others_captions():
    tokenizer, caption = Tokenizer(TOKENIZER), "red wall " * 60
    wanted = tokenizer.image_ids([caption]), tokenizer.text_ids([caption])
    assert wanted[0].shape[1] > 77 == wanted[1].shape[1]

    def ask(number):
        kind = number % 2
        return torch.equal(wanted[kind], (tokenizer.text_ids if kind else tokenizer.image_ids)([caption]))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(400)))
    finally:
        sys.setswitchinterval(before)


def test_tokenizer_pads_and_truncates():
    tokenizer = Tokenizer(TOKENIZER)
    image = tokenizer.image_ids(["a", "a a " * 60])
    assert image.shape == (2, 122) and image.dtype == torch.int64
    assert (image[0, 2:] == tokenizer.end_id).all()
    text = tokenizer.text_ids(["", "a * " * 60])
    assert text.shape == (2, CONTEXT_LENGTH)
    assert text[0, 0] == tokenizer.end_id - 1 and (text[0, 1:] == tokenizer.end_id).all()
    assert text[1, -1] == tokenizer.end_id
    assert (text[1] == tokenizer.placeholder_id).sum() == 37
    assert tokenizer.image_ids([""]).tolist() == [[tokenizer.end_id - 1, tokenizer.end_id]]


CLEANED = {  # as written -> what CLIP's own cleaning makes of it
    "a sign that says \u201copen\u201d": 'a sign that says "open"',
    "the baker\u2019s shop": "the baker's shop",
    "\u2018quoted\u2019 words": "'quoted' words",
    "\uff21\uff22\uff23 \uff11\uff12\uff13": "ABC 123",
    "a \ufb01ne of\ufb01ce \ufb02oor": "a fine office floor",
    "salt &amp; pepper": "salt & pepper",
    "caf\u00c3\u00a9 at night": "caf\u00e9 at night",
    "cafe\u0301": "caf\u00e9",
    "wide\u3000space": "wide space",
    "plain, and 5 * 3": "plain, and 5 * 3",
    "\u4f60\u597d": "\u4f60\u597d",
}


def basic_clean(text):
    """CLIP's `basic_clean` and `whitespace_clean` (openai/CLIP, simple_tokenizer.py), in own words."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def test_captions_are_cleaned_as_clip_was_trained():
    tokenizer = Tokenizer(TOKENIZER)
    for written, plain in CLEANED.items():
        expected = tokenizer._bpe(plain)["input_ids"]
        assert (
            tokenizer.image_ids([written])[0].tolist() == expected == tokenizer._bpe(basic_clean(written))["input_ids"]
        )
        assert tokenizer.text_ids([written])[0, : len(expected)].tolist() == expected


@pytest.mark.parametrize("star", ["\uff0a", "&ast;", "&#42;", "&amp;#42;"])
def test_no_other_character_becomes_a_placeholder(star):
    tokenizer = Tokenizer(TOKENIZER)
    [ids] = tokenizer.image_ids([f"a \u201c{star}\u201d and a * here"]).tolist()
    assert ids.count(tokenizer.placeholder_id) == 1
    assert clean(f"{star} * \u2019") == "  * '"


def test_tokenizer_folder_without_files_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="vocab.json is missing"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("files", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_folder_of_current_and_of_old_transformers(tmp_path, files):
    """What transformers saves today, of which one file is enough, and what it saved before give the same ids."""
    from transformers import CLIPTokenizer

    saved, given = CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True), tmp_path / "given"
    saved.save_pretrained(tmp_path / "saved")
    given.mkdir()
    for name in files:
        source = tmp_path / "saved" / name
        (given / name).write_bytes((source if source.is_file() else Path(TOKENIZER) / name).read_bytes())
    found, own, captions = (
        Tokenizer(given),
        Tokenizer(TOKENIZER),
        ["Hello World's 123 CAF\u00c9", "Text says * , * . ", ""],
    )
    assert torch.equal(found.image_ids(captions), own.image_ids(captions))
    assert torch.equal(found.text_ids(captions), own.text_ids(captions))
    assert (found.placeholder_id, found.end_id) == (own.placeholder_id, own.end_id)


def test_tokenizer_of_other_weights_is_refused():
    model = miniature(embedding_manager_config__params__placeholder_id=5)
    with pytest.raises(ValueError, match="gives '\\*' the id 265, .* waits for 5"):
        model.condition(small_batch())
