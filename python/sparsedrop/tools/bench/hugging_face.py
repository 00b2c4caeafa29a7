"""Models of Hugging Face for `sparsedrop bench`: of random weights, at the size that they are known
by, and with one rate for all of their dropouts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparsedrop.tools.cli import UserError
from sparsedrop.tools.networks import NONE, Drop

GPT2_WORDS, BERT_WORDS = 50257, 30522
"""Sizes of the vocabularies."""

CLASSES = 1000
"""Of ImageNet."""


class Logits(nn.Module):
    """A model whose output has its logits among others: [...] -> the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).logits


def gpt2(drop: Drop, **changed: Any) -> nn.Module:
    """The small GPT-2: word ids [batch, tokens] -> logits [batch, tokens, 50257]; 124 million
    parameters. `changed` are values of the configuration."""
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), _rate(drop))
    transformers = _transformers()
    config = transformers.GPT2Config(**{**rates, "use_cache": False, **changed})
    return Logits(transformers.GPT2LMHeadModel(config))


def bert(drop: Drop, **changed: Any) -> nn.Module:
    """BERT-base with its head for masked words: word ids [batch, tokens] -> logits [batch, tokens,
    30522]; 110 million parameters."""
    transformers = _transformers()
    config = transformers.BertConfig(**{**_rates(drop), "vocab_size": BERT_WORDS, **changed})
    return Logits(transformers.BertForMaskedLM(config))


def vit(drop: Drop, **changed: Any) -> nn.Module:
    """ViT-B/16: images [batch, 3, 224, 224] -> logits [batch, 1000]; 86 million parameters."""
    transformers = _transformers()
    config = transformers.ViTConfig(**{**_rates(drop), "num_labels": CLASSES, **changed})
    return Logits(transformers.ViTForImageClassification(config))


def _rate(drop: Drop) -> float:
    return 0.0 if drop.kind == NONE else drop.p


def _rates(drop: Drop) -> dict[str, float]:
    return dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), _rate(drop))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"models of Hugging Face need transformers ({error}): pip install transformers"
        ) from None
    return transformers
