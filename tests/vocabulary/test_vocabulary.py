"""A vocabulary without what a corpus does not use: the same tokens, the same logits, on texts whose tokens stay."""

import random

import pytest
import torch
from language_networks import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import metaprune as mp
from metaprune.testing import assert_untouched

WORDS = [
    "the",
    "cat",
    "dog",
    "horse",
    "houses",
    "running",
    "runner",
    "runs",
    "unhappy",
    "happiness",
    "quickly",
    "quick",
    "nation",
    "national",
    "nations",
]
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
KINDS = ["BPE", "BPE of letters", "BPE of words", "WordPiece", "Unigram"]


def texts(count, seed, words=WORDS):
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(count)]


def made(kind):
    if kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
    elif kind == "BPE of letters":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIALS)
    elif kind == "BPE of words":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIALS, end_of_word_suffix="</w>")
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIALS)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=SPECIALS, unk_token="<unk>")
    tokenizer.train_from_iterator(texts(300, 0), trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def model_for(tokenizer, tied=True, extra_rows=5):
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + extra_rows, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_texts_of_kept_tokens_are_cut_and_read_as_before(kind, tied, tmp_path):
    tokenizer = made(kind)
    model = model_for(tokenizer, tied)
    corpus = texts(40, 1, WORDS[:7])
    before = tokenizer.backend_tokenizer.to_str()
    with assert_untouched(model):
        small = mp.prune_vocabulary(model, tokenizer, corpus=corpus)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert len(small.kept) < len(tokenizer) and small.error <= 1e-9
    rows = model.get_input_embeddings().num_embeddings - len(small.kept)
    assert small.params[0] - small.params[1] == rows * 16 * (1 if tied else 2)
    assert type(small.model) is type(model) and small.model.config.vocab_size == len(small.kept)
    same = small.model.lm_head.weight is small.model.model.embed_tokens.weight
    assert same == tied
    small.model.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path)
    kept = set(small.kept)
    checked = 0
    for text in [*corpus, *texts(200, 2)]:
        old = tokenizer(text)["input_ids"]
        for tokens in (small.tokenizer(text)["input_ids"], again(text)["input_ids"]):
            if kept.issuperset(old):
                assert [small.kept[i] for i in tokens] == old
            assert small.tokenizer.decode(tokens) == tokenizer.decode(old) or not kept.issuperset(old)
        if kept.issuperset(old):
            checked += 1
            ids, new = torch.tensor([old]), torch.tensor([tokens])
            with torch.no_grad():
                torch.testing.assert_close(read(new).logits, model(ids).logits[..., small.kept])
    assert checked >= 40


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_can_still_be_written_and_specials_stay(kind):
    tokenizer = made(kind)
    small = mp.prune_vocabulary(model_for(tokenizer), tokenizer, tokens=[])
    assert {tokenizer.convert_tokens_to_ids(name) for name in SPECIALS} <= set(small.kept)
    for name in ("pad", "bos", "eos"):
        assert small.kept[getattr(small.model.config, f"{name}_token_id")] == getattr(tokenizer, f"{name}_token_id")
        assert small.kept[getattr(small.tokenizer, f"{name}_token_id")] == getattr(tokenizer, f"{name}_token_id")
    for text in texts(30, 3):
        tokens = small.tokenizer.encode(text, add_special_tokens=False)
        assert "".join(small.tokenizer.decode(tokens).replace("##", "").replace("▁", "").split()) == text.replace(
            " ", ""
        )


def test_generation_gives_the_same_words():
    tokenizer = made("BPE")
    model = model_for(tokenizer, extra_rows=0)
    corpus = texts(40, 1, WORDS[:7])
    everything = mp.prune_vocabulary(model, tokenizer, tokens=range(len(tokenizer)))
    assert everything.params[0] == everything.params[1]
    small = mp.prune_vocabulary(model, tokenizer, corpus=corpus, min_count=2)
    ids = torch.tensor([small.tokenizer.encode(corpus[0])])
    made_ids = small.model.generate(ids, max_new_tokens=4, do_sample=False)
    assert int(made_ids.max()) < len(small.kept)


def test_bad_arguments_are_errors_of_one_line():
    tokenizer = made("BPE")
    model = model_for(tokenizer)
    with pytest.raises(mp.ConfigError, match="give a corpus"):
        mp.prune_vocabulary(model, tokenizer)
    with pytest.raises(mp.ConfigError, match="corpus is one text"):
        mp.prune_vocabulary(model, tokenizer, corpus="the cat")
    with pytest.raises(mp.ConfigError, match="no token 99999"):
        mp.prune_vocabulary(model, tokenizer, tokens=[99999])
    with pytest.raises(mp.NotAvailableError, match="no fast tokenizer"):
        mp.prune_vocabulary(model, object(), tokens=[1])
    with pytest.raises(mp.NotAvailableError, match="Linear has no embedding of tokens"):
        mp.prune_vocabulary(torch.nn.Linear(2, 2), tokenizer, tokens=[1])
