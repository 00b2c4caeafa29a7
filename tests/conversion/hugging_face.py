"""Models of transformers, of small random configurations, and their inputs."""

import torch
import transformers

IDS = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TINY = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS, "labels": IDS}


def bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, max_position_embeddings=32, **TINY
    )
    model = transformers.BertForSequenceClassification(config)
    return model, {"input_ids": IDS, "labels": torch.tensor([0, 1, 1, 0])}


def vit():
    config = transformers.ViTConfig(
        hidden_size=32, image_size=16, patch_size=4, hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1, num_labels=2, **TINY,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    return model, {"pixel_values": PIXELS, "labels": torch.tensor([0, 1, 1, 0])}


def t5():
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config), {"input_ids": IDS, "labels": IDS}
