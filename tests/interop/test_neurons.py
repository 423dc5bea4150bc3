"""From one neuron to a network that learns, with the numbers that the book prints for its toy data.

What PyTorch draws (weights, the order of batches) goes into all three implementations as arrays: what follows from it
is the same everywhere. Source: Raschka, *Build a Large Language Model (From Scratch)*, appendix A.
"""

import importlib
import math

import numpy as np
import pytest

X = np.array([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]])
LABELS = np.array([0, 0, 0, 1, 1])
HELD_OUT, THEIRS = np.array([[-0.8, 2.8], [2.6, -1.6]]), np.array([0, 1])
PLACES = {"numpy": "common.oracle", "torch": "torch_impl", "jax": "jax_impl"}


@pytest.fixture(params=PLACES)
def wing(request):
    """(the room of an implementation, what makes its arrays of NumPy's), in float64."""
    room = importlib.import_module(f"{PLACES[request.param]}.neurons")
    if request.param == "jax":
        import jax

        with jax.enable_x64(True):
            yield room, jax.numpy.asarray
    else:
        yield room, importlib.import_module("torch").tensor if request.param == "torch" else np.asarray


def drawn():
    """What the book draws after `torch.manual_seed(123)`: its network's weights, and the batches of three epochs."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(123)
    weights = {}
    for layer, (before, after) in enumerate(((2, 30), (30, 20), (20, 2))):
        for name, p in torch.nn.Linear(before, after).named_parameters():
            weights[f"layers.{layer}.{name}"] = p.detach().double().numpy()
    rows = DataLoader(TensorDataset(torch.arange(len(X))), 2, shuffle=True, drop_last=True)
    return weights, [chosen.numpy() for _ in range(3) for (chosen,) in rows]


# the mean size of the slopes by the weights of five layers, without and with shortcuts; F-052, Raschka, section 4.4
WITHOUT = [0.00020173587836325169, 0.00012011159560643137, 0.0007152039906941354, 0.0013988736318424344,
           0.005049645435065031]  # fmt: skip
WITH = [0.22169792652130127, 0.20694106817245483, 0.32896995544433594, 0.2665732204914093, 1.3258540630340576]


@pytest.mark.parametrize(("shortcuts", "want"), [(False, WITHOUT), (True, WITH)], ids=["without", "with"])
def test_shortcuts_hand_slopes_down(wing, shortcuts, want):
    """Five layers with GELU, 3-3-3-3-3-1 wide, as the book draws them after `torch.manual_seed(123)`: all but the last
    can be passed by."""
    import torch

    room, array = wing
    gelu = importlib.import_module(room.__name__.replace("neurons", "layers")).ACTIVATIONS["gelu_tanh"]
    torch.manual_seed(123)
    params = {}
    for layer, width in enumerate((3, 3, 3, 3, 1)):
        for name, p in torch.nn.Linear(3, width).named_parameters():
            params[f"{layer}.{name}"] = array(p.detach().double().numpy())

    def loss(params, x, target):
        for layer in range(5):
            y = gelu(x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"])
            x = x + y if shortcuts and x.shape == y.shape else y
        return ((x - target) ** 2).mean()

    _, grads = room.gradients(loss, params, array(np.array([[1.0, 0.0, -1.0]])), array(np.array([[0.0]])))
    got = [float(abs(grads[f"{layer}.weight"]).mean()) for layer in range(5)]
    assert got == pytest.approx(want, rel=2e-6)


def test_a_neuron_and_its_slopes(wing):
    room, array = wing
    weight, bias, x, label, other = (array(np.float64(number)) for number in (2.2, 0, 1.1, 1, 0))
    params = {"weight": weight, "bias": bias}
    loss, grads = room.gradients(room.neuron_loss, params, x, label)
    assert (round(float(loss), 4), {name: round(float(g), 4) for name, g in grads.items()}) == (
        0.0852,
        {"weight": -0.0898, "bias": -0.0817},
    )
    guess = 1 / (1 + math.exp(-2.2 * 1.1))
    assert float(room.neuron(x, **params)) == pytest.approx(guess, rel=1e-15)
    for name, want in {"weight": (guess - 1) * 1.1, "bias": guess - 1}.items():  # by the chain rule
        assert float(grads[name]) == pytest.approx(want, rel=1e-14)
    assert float(room.neuron_loss(params, x, other)) == pytest.approx(-math.log(1 - guess), rel=1e-14)


@pytest.mark.parametrize(("sizes", "count"), [((50, 3), 2213), ((2, 2), 752)])
def test_how_many_parameters_the_network_has(wing, sizes, count):
    room, array = wing
    params = room.new_network(*sizes)
    assert sum(math.prod(p.shape) for p in params.values()) == count
    wide = {name: array(np.asarray(p, np.float64)) for name, p in params.items()}
    assert room.network(wide, array(np.ones((4, sizes[0])))).shape == (4, sizes[1])
    other = room.new_network(*sizes, seed=1)
    assert (np.asarray(params["layers.1.weight"]) != np.asarray(other["layers.1.weight"])).all()


@pytest.mark.full_for("jax")
def test_the_network_learns_as_in_the_book(wing):
    room, array = wing
    weights, batches = drawn()
    params, losses = {name: array(w) for name, w in weights.items()}, []
    for chosen in batches:
        params, loss = room.learn(params, array(X[chosen]), array(LABELS[chosen]), 0.5)
        losses.append(round(float(loss), 2))
    assert losses == [0.75, 0.65, 0.44, 0.13, 0.03, 0.00]
    logits = np.asarray(room.network(params, array(X)))
    np.testing.assert_allclose(logits[0], [2.8569, -4.1618], rtol=0, atol=5.1e-5)
    for x, labels in ((X, LABELS), (HELD_OUT, THEIRS)):
        assert room.accuracy(params, array(x), array(labels)) == 1.0
        assert room.accuracy(params, array(x), array(1 - labels)) == 0.0


@pytest.mark.full_for("jax")
def test_slopes_of_the_network_are_those_of_a_small_step(wing):
    """Of every parameter along a random direction, by the loss on both sides."""
    room, array = wing
    weights, _ = drawn()
    x, labels, rng = array(X), array(LABELS), np.random.default_rng(0)
    _, grads = room.gradients(room.network_loss, {n: array(w) for n, w in weights.items()}, x, labels)
    for name, w in weights.items():
        along, sides = rng.standard_normal(w.shape), []
        for h in (1e-5, -1e-5):
            moved = {n: array(p) for n, p in {**weights, name: w + h * along}.items()}
            sides.append(float(room.network_loss(moved, x, labels)))
        slope = (np.asarray(grads[name]) * along).sum()
        assert slope == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6)
