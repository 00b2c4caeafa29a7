"""Hugging Face's models under the clock: one model of each kind, converted where it runs."""

import argparse
import sys

import pytest
import torch
from torch import nn

from sparsedrop.tools import bench, cli
from sparsedrop.tools.bench import hugging_face
from sparsedrop.tools.bench.network import Training
from sparsedrop.tools.bench.networks import NETWORKS, Network
from sparsedrop.tools.bench.settings import resolve
from sparsedrop.tools.networks import DROPOUT, METHODS, NONE, SPARSEDROP, Drop

WORDS, TOKENS = 50, 16
SMALL = {"vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 0}
TEXT = {**SMALL, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
BUILDS = {
    "gpt2": lambda drop: hugging_face.gpt2(drop, **SMALL, n_embd=256, n_head=4, n_layer=1),
    "bert": lambda drop: hugging_face.bert(drop, **TEXT, num_attention_heads=4),
}


def _image_model(drop):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    return hugging_face.vit(drop, **sizes, num_attention_heads=4, image_size=32, patch_size=8)


@pytest.fixture(params=["gpt2", "bert", "vit-b-16"])
def network(request, monkeypatch):
    """The name of a network, which is made small here."""
    pytest.importorskip("transformers")
    if request.param == "vit-b-16":
        small = NETWORKS[request.param]._replace(
            build=_image_model,
            inputs=lambda batch, device: torch.randn(batch, 3, 32, 32, device=device),
        )
    else:
        small = Network(
            BUILDS[request.param],
            batch=4,
            inputs=lambda batch, device: torch.randint(WORDS, (batch, TOKENS), device=device),
            targets=lambda batch, device: torch.randint(WORDS, (batch, TOKENS), device=device),
            p=0.3,
            is_converted=True,
        )
    monkeypatch.setitem(NETWORKS, request.param, small)
    return request.param


def _settings(name):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(["--network", name, "--batch", "64"])
    return resolve(args, torch.device("cpu"))


def _training(name, kind):
    return Training(name, Drop(kind, 0.3), "float32", "eager", _settings(name))


def test_all_kinds_are_one_model(network):
    models = {kind: _training(network, kind).model.eval() for kind in METHODS.values()}
    inputs = NETWORKS[network].inputs(2, torch.device("cpu"))
    with torch.no_grad():
        outputs = {kind: model(inputs) for kind, model in models.items()}
    for kind, output in outputs.items():
        assert torch.equal(output, outputs[NONE]), kind


def test_what_is_timed_is_converted_and_drops(network):
    seen = {}
    for kind in (NONE, DROPOUT, SPARSEDROP):
        training = _training(network, kind)
        training.step()
        of_ours = [
            m for m in training.model.modules() if type(m).__module__.startswith("sparsedrop.")
        ]
        converted = [m for m in of_ours if not isinstance(m, hugging_face.Logits)]
        rates = {m.p for m in training.model.modules() if isinstance(m, nn.Dropout)}
        seen[kind] = (bool(converted), rates)
        first, second = (training.model(training.inputs) for _ in range(2))
        assert torch.equal(first, second) == (kind == NONE)
    assert [kind for kind, (has_ours, _) in seen.items() if has_ours] == [SPARSEDROP]
    assert seen[NONE][1] == {0.0}
    assert seen[DROPOUT][1] == {0.3}


def test_without_transformers_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cli.main(["bench", "--device", "cpu", "--network", "gpt2"]) == 2
    assert "pip install transformers" in capsys.readouterr().err
