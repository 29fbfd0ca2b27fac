"""What users of language models meet first: names of tied layers, foreign tokenizers, folders that would not load."""

import logging

import pytest
import torch
import transformers

import metaprune as mp
from metaprune.core.errors import DataError, PlanError

IDS = torch.randint(3, 60, (2, 10), generator=torch.Generator().manual_seed(0))


def llama(**options):
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, **options,
    )  # fmt: skip
    with mp.Rng(0).torch_global():
        return transformers.LlamaForCausalLM(config).eval()


class Tokens(torch.utils.data.Dataset):
    def __init__(self, most):
        self.most = most

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"input_ids": torch.full((10,), self.most) - index % 3}


def test_a_tied_head_is_named_by_both_names():
    spaces = [mp.trace(llama(tie_word_embeddings=tied), (), {"input_ids": IDS}).space for tied in (True, False)]
    for space in spaces:
        stream = space.match(["lm_head"])
        assert stream == space.match(["model.embed_tokens"]) and len(stream) == 1
        assert stream == space.match(["lm_head.weight"])
        with pytest.raises(PlanError, match="lm_heads"):
            space.match(["lm_heads"])


def test_token_ids_beyond_the_embedding_are_told():
    data = (Tokens(59), Tokens(70))
    with pytest.raises(DataError, match=r"go up to 70, and its embedding has 60 rows.*own tokenizer"):
        mp.prune(llama(), (), {"input_ids": IDS}, budget="params=80%", data=data, objective="next_token")


def test_a_config_that_cannot_follow_is_told_once_cut(caplog):
    with caplog.at_level(logging.INFO, "metaprune"):
        mp.prune(llama(), (), {"input_ids": IDS}, budget="params=80%", method="random", progress=False)
    assert "save_pretrained would write a folder that does not load" in caplog.text
