"""Training steps in CUDA graphs: what a GPU is not needed for."""

import pytest
import torch
from torch import nn

import sparsedrop
from sparsedrop.capturing import CapturedStep, Replay
from sparsedrop.nn import SliceOutMLP

BF16 = torch.bfloat16


def test_on_a_cpu_calls_run_the_step():
    model, x = SliceOutMLP(16, 64), torch.randn(8, 16)
    calls = []

    def step(x):
        calls.append(x)
        return model(x).sum()

    run = sparsedrop.capture(model, step, x)
    assert isinstance(run, CapturedStep)
    assert (run.graphs, calls) == (0, [])
    assert run(x).grad_fn is not None
    assert calls == [x]


def test_a_batch_of_another_kind_is_refused():
    run = sparsedrop.capture(nn.Linear(4, 4), lambda x, y: None, torch.ones(2, 4), torch.ones(2))
    run(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"the batch is \[3, 4\] torch\.float32, \[2\] torch"):
        run(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"for \[2, 4\] torch\.float32, \[2\] torch\.float32"):
        run(torch.zeros(2, 4, dtype=BF16), torch.zeros(2))
    with pytest.raises(ValueError, match="the batch is no tensors"):
        run()
    with pytest.raises(TypeError, match="a batch is tensors, but number 1 is of type int"):
        run(torch.zeros(2, 4), 3)
    assert repr(run) == (
        "CapturedStep(calls the step: there is no GPU; [2, 4] torch.float32, [2] torch.float32)"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"draws": 0}, "draws must be a whole number of at least 1, not 0"),
        ({"draws": 1.5}, "draws must be a whole number of at least 1, not 1.5"),
        ({"warm_up": 0}, "warm_up must be a whole number of at least 1, not 0"),
        ({"draws": True}, "draws must be a whole number of at least 1, not True"),
    ],
)
def test_wrong_numbers(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        sparsedrop.capture(nn.Linear(4, 4), lambda: None, **options)


def test_examples_beside_the_model_are_refused():
    with pytest.raises(ValueError, match="the model is on cpu, but example 0 is on meta"):
        sparsedrop.capture(nn.Linear(4, 4), lambda x: None, torch.ones(2, 4, device="meta"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((lambda x: x, nn.Linear(4, 4)), "model must be an nn.Module, not function: capture"),
        ((nn.Linear(4, 4), torch.ones(())), "step must be a function of a batch, not Tensor"),
        ((nn.Linear(4, 4), None), "step must be a function of a batch, not NoneType"),
        ((nn.Linear(4, 4), print, (torch.ones(2),)), "but number 0 is of type tuple"),
        ((nn.Linear(4, 4), print, torch.ones(2).numpy()), "but number 0 is of type ndarray"),
    ],
)
def test_wrong_arguments(arguments, sentence):
    with pytest.raises(TypeError, match=sentence):
        sparsedrop.capture(*arguments)


@pytest.mark.parametrize(
    "change",
    [lambda m: m.eval(), lambda m: sparsedrop.set_rate(m, 0.25), lambda m: m[1].dropout.eval()],
)
def test_what_a_capture_has_fixed_may_not_change(change):
    model, x = nn.Sequential(nn.Linear(16, 16), SliceOutMLP(16, 64, p=0.5)), torch.ones(2, 16)
    run = sparsedrop.capture(model, lambda x: model(x).sum().backward(), x)
    run(x)
    change(model)
    with pytest.raises(RuntimeError, match="not those of the capture: capture the step again"):
        run(x)
    model.train()
    sparsedrop.set_rate(model, 0.5)
    run(x)


def test_graphs_are_replayed_in_turn_in_random_orders():
    """With replays that only say which they are."""
    played, inputs = [], (torch.zeros(2),)
    model, kept = nn.Linear(2, 1), [torch.full((1, 2), 7.0), torch.full((1,), 7.0)]
    weights = list(model.parameters())
    replays = [
        Replay(lambda i=i: played.append(i), f"result {i}", [True, i % 2 == 0]) for i in range(5)
    ]
    run = CapturedStep(lambda x: None, inputs, model, replays, kept)
    results = [run(torch.full((2,), float(i))) for i in range(50)]
    assert results == [f"result {i}" for i in played]
    turns = [tuple(played[i : i + 5]) for i in range(0, 50, 5)]
    assert all(sorted(turn) == list(range(5)) for turn in turns)
    assert len(set(turns)) > 1
    assert torch.equal(inputs[0], torch.full((2,), 49.0))
    for _ in range(10):
        for weight in weights:
            weight.grad = None  # as an optimiser's zero_grad leaves it
        run(torch.zeros(2))
        assert weights[0].grad is kept[0]
        assert (weights[1].grad is None) == bool(played[-1] % 2)


def test_lazy_gradients_are_refused():
    model = nn.Sequential(SliceOutMLP(16, 64, gradients="lazy"))
    with pytest.raises(RuntimeError, match='0 has gradients="lazy", which cannot be captured'):
        sparsedrop.capture(model, lambda: None)


def test_a_call_starts_without_gradients():
    model, x = nn.Linear(4, 1), torch.ones(2, 4)
    run = sparsedrop.capture(model, lambda x: model(x).sum().backward(), x)
    for _ in range(3):
        run(x)
        assert torch.equal(model.weight.grad, torch.full((1, 4), 2.0))
