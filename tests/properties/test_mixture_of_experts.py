"""What is known of mixtures of experts: identities, ties, decisions, padding and caches, and what is refused."""

import importlib

import numpy as np
import pytest
from mixtures import ENTRY, FORMS, FULL, PLAIN, batch, close, of, silu, softmax

from common import params
from common.config import Execution, SamplingConfig
from common.decoding import padded
from common.errors import UserError
from common.variants.mixture_of_experts import MixtureOfExperts

pytestmark = pytest.mark.full_for("jax")  # its cases are tried in make test, with all their claims


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.full_for("jax")
@pytest.mark.parametrize("entry", [ENTRY, PLAIN, FULL], ids=["shared", "plain", "full"])
@pytest.mark.parametrize(("wing", "form", "dtype", "bound"), FORMS)
def test_loop_grouped_and_gathered_are_the_same(model_of, wing, form, dtype, bound, entry):
    """Outputs and gradients."""
    (ids, targets), config = batch(), of(entry)
    plain, other = (model_of(wing, config, dtype, experts=how) for how in ("loop", form))
    close(other.forward(ids).logits, plain.forward(ids).logits, bound)
    want, got = (model.gradients(ids, targets) for model in (plain, other))
    assert got.value == pytest.approx(want.value, rel=bound)
    for name, parameter in params.table(config).items():
        if not parameter.dead:
            close(got.grads[name], want.grads[name], 10 * bound)


@pytest.mark.full_for("jax")
def test_one_expert_is_a_gated_feed_forward(fresh_model, name):
    """On the same matrices; the router is dead."""
    alone, dense = of(MixtureOfExperts(1, 1)), of("gated_mlp")
    weights, ids = params.randomise(alone, 3), batch()[0]
    assert [n for n, p in params.table(alone).items() if p.dead and "mlp" in n] == [
        f"model.layers.{layer}.mlp.router.weight" for layer in range(2)
    ]
    own = {}
    for key in params.table(dense):
        there = key.replace(".mlp.", ".mlp.experts.").removesuffix(".weight")
        own[key] = weights[there][0] if ".mlp." in key else weights[key]
    want = fresh_model(name, dense, weights=own).forward(ids).logits
    close(fresh_model(name, alone, weights=weights).forward(ids).logits, want)


@pytest.mark.full_for("jax")
def test_all_experts_chosen_are_the_weighted_sum_of_all(fresh_model, name):
    """By hand: sum over x of softmax(logits)_x expert_x."""
    config = of(MixtureOfExperts(3, 3, expert_dim=8))
    weights, ids = params.randomise(config, 4), batch()[0]
    taps = fresh_model(name, config, weights=weights).forward(ids, taps=("model.layers.1.*",)).taps
    x = taps["model.layers.1.post_attention_layernorm"]
    at = "model.layers.1.mlp."
    gate, up, down = (weights[f"{at}experts.{which}_proj"].astype(np.float64) for which in ("gate", "up", "down"))
    hidden = silu(np.einsum("bte,xfe->btxf", x, gate)) * np.einsum("bte,xfe->btxf", x, up)
    each = np.einsum("btxf,xef->btxe", hidden, down)
    shares = softmax(x @ weights[f"{at}router.weight"].astype(np.float64).T)
    close(taps[f"{at}output"], (shares[..., None] * each).sum(2))
    np.testing.assert_array_equal(taps[f"{at}chosen"], np.broadcast_to(np.arange(3), (*ids.shape, 3)))


def test_a_normalised_softmax_of_all_is_a_softmax_of_those_chosen(model_of, name):
    ids = batch()[0]
    want = model_of(name, of(PLAIN)).forward(ids).logits
    close(model_of(name, of(PLAIN.with_(routing="softmax_then_top_k"))).forward(ids).logits, want)
    other = model_of(name, of(PLAIN.with_(routing="softmax_then_top_k", normalise=False))).forward(ids).logits
    assert np.abs(other - want).max() > 1e-3 * np.abs(want).max()


@pytest.mark.full_for("jax")
def test_experts_in_another_order(fresh_model, name):
    """Matrices and rows of the router permuted: the same function, other numbers."""
    config, ids = of(ENTRY), batch()[0]
    weights, order = params.randomise(config, 5), np.array([3, 0, 4, 1, 2])  # new expert i is the old expert order[i]
    moved = {n: w[order] if ".experts." in n or ".router." in n else w for n, w in weights.items()}
    taps = ("model.layers.0.mlp.chosen",)
    want, got = (fresh_model(name, config, weights=w).forward(ids, taps=taps) for w in (weights, moved))
    close(got.logits, want.logits)
    chosen = want.taps[taps[0]]
    np.testing.assert_array_equal(got.taps[taps[0]], np.sort(np.argsort(order)[chosen], -1))
    half = {n: w[order] if ".experts." in n else w for n, w in weights.items()}
    assert np.abs(fresh_model(name, config, weights=half).forward(ids).logits - want.logits).max() > 1e-3


@pytest.mark.full_for("jax")
def test_several_shared_experts_are_a_wide_one(fresh_model, name):
    """Two side by side, without a gate: their sum is one of twice the width."""
    wide, none = of(PLAIN.with_(shared_dim=14)), of(PLAIN)
    weights, ids = params.randomise(wide, 6), batch()[0]
    found = fresh_model(name, wide, weights=weights).forward(ids, taps=("model.layers.0.*",)).taps
    bare = {n: w for n, w in weights.items() if "shared_expert" not in n}
    mixture = fresh_model(name, none, weights=bare).forward(ids, taps=("model.layers.0.mlp.output",)).taps
    x, own = found["model.layers.0.post_attention_layernorm"], "model.layers.0.mlp.shared_expert."
    gate, up, down = (weights[f"{own}{which}_proj.weight"].astype(np.float64) for which in ("gate", "up", "down"))
    halves = [(silu(x @ gate[h].T) * (x @ up[h].T)) @ down[:, h].T for h in (slice(0, 7), slice(7, 14))]
    want = mixture["model.layers.0.mlp.output"] + sum(halves)
    close(found["model.layers.0.mlp.output"], want)


# --- decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.full_for("jax-gathered", "jax-loop-float64", "jax-loop-bfloat16")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("form", ["loop", "gathered"])
def test_of_equal_logits_the_lower_numbers_are_chosen(fresh_model, wing, dtype, form):
    """A router of zeros: experts 0 and 1 take all tokens with equal weights, all others none, nor any gradient."""
    config, (ids, targets) = of(MixtureOfExperts(6, 2, expert_dim=8)), batch()
    weights = {n: np.zeros_like(w) if ".router." in n else w for n, w in params.randomise(config, 7).items()}
    model = fresh_model(wing, config, dtype, weights=weights, experts=form)
    taps = model.forward(ids, taps=("*.mlp.chosen", "*.mlp.shares")).taps
    for layer in range(2):
        assert (taps[f"model.layers.{layer}.mlp.chosen"] == [0, 1]).all()
        np.testing.assert_allclose(taps[f"model.layers.{layer}.mlp.shares"], 0.5, rtol=1e-6)
    grads = model.gradients(ids, targets).grads
    for key in (n for n in grads if ".experts." in n):
        assert np.abs(grads[key][:2]).max() > 0
        assert (grads[key][2:] == 0).all()


def test_the_oracle_chooses_the_lower_numbers_too(fresh_model):
    config, (ids, _) = of(MixtureOfExperts(6, 3, expert_dim=8)), batch()
    weights = {n: np.zeros_like(w) if ".router." in n else w for n, w in params.randomise(config, 7).items()}
    taps = fresh_model("numpy", config, weights=weights).forward(ids, taps=("*.mlp.chosen",)).taps
    assert all((value == [0, 1, 2]).all() for value in taps.values())
    assert len(taps) == 2


@pytest.mark.full_for("jax-bfloat16")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_decisions_follow_from_the_logits_and_differ_within_rounding_only(model_of, wing, dtype):
    """Every choice is that of the largest of the wing's own logits, to the last one; where it is not the oracle's, both
    logits at the border are so near that the errors of the wing's own explain it.
    """
    config, ids = of(ENTRY), batch(3, 40)[0]
    models = model_of("numpy", config), model_of(wing, config, dtype)
    want, got = (model.forward(ids, taps=("*.mlp.*",)).taps for model in models)
    for layer in range(2):
        at = f"model.layers.{layer}.mlp."
        own, true = got[f"{at}router"].astype(np.float64), want[f"{at}router"]
        order = np.argsort(-own, -1, kind="stable")
        np.testing.assert_array_equal(got[f"{at}chosen"], np.sort(order[..., :2], -1))
        differs = (got[f"{at}chosen"] != want[f"{at}chosen"]).any(-1)
        ranked = np.sort(true, -1)[..., ::-1]
        assert (ranked[..., 1] - ranked[..., 2] <= 2 * np.abs(own - true).max(-1))[differs].all()
        if dtype == "float64":
            assert not differs.any()
            assert {0, 1, 2, 3, 4} == set(np.unique(want[f"{at}chosen"])), "an expert is never chosen"


@pytest.mark.full_for("jax")
def test_of_equal_groups_the_first_are_taken(fresh_model, name):
    """Logits and biases all alike: the two first groups, and of their four experts the three first."""
    config, (ids, _) = of(FULL), batch()
    weights = {
        n: np.zeros_like(w) if ".router." in n or n.endswith("choice_bias") else w
        for n, w in params.randomise(config, 7).items()
    }
    taps = fresh_model(name, config, weights=weights).forward(ids, taps=("*.mlp.chosen",)).taps
    assert all((value == [0, 1, 2]).all() for value in taps.values())
    assert len(taps) == 2


@pytest.mark.full_for("jax")
def test_a_bias_steers_the_choice_and_weighs_nothing(fresh_model, name):
    """So large a bias that two groups are always taken: what their experts weigh is a sigmoid of their logits."""
    config, ids = of(FULL.with_(normalise=False, top_k=4)), batch()[0]
    weights = params.randomise(config, 8)
    for layer in range(2):
        weights[f"model.layers.{layer}.mlp.choice_bias"] = np.float32([0, 0, 9, 9, 0, 0, 9, 9])
    taps = fresh_model(name, config, weights=weights).forward(ids, taps=("*.mlp.*",)).taps
    for layer in range(2):
        at = f"model.layers.{layer}.mlp."
        assert (taps[f"{at}chosen"] == [2, 3, 6, 7]).all()
        own = 1 / (1 + np.exp(-taps[f"{at}router"][..., [2, 3, 6, 7]].astype(np.float64)))
        close(np.sort(taps[f"{at}shares"], -1), np.sort(own, -1))


@pytest.mark.full_for("jax")
def test_a_clamped_expert_by_hand(fresh_model, name):
    """min(gate, limit) bent, times (up between both limits + 1), and biases: one expert that takes all."""
    entry = MixtureOfExperts(1, 1, expert_dim=8, expert_bias=True, limit=0.7, offset=1.0)
    config, ids = of(entry, activation="quick_gelu"), batch()[0]
    weights = params.randomise(config, 9)
    taps = fresh_model(name, config, weights=weights).forward(ids, taps=("model.layers.0.*",)).taps
    x, at = taps["model.layers.0.post_attention_layernorm"], "model.layers.0.mlp.experts."
    own = {n.removeprefix(at): w[0].astype(np.float64) for n, w in weights.items() if n.startswith(at)}
    gate, up = (x @ own[f"{which}_proj"].T + own[f"{which}_bias"] for which in ("gate", "up"))
    assert all((beyond > 0.7).mean() > 0.05 for beyond in (gate, -gate, up, -up))
    gate, up = np.minimum(gate, 0.7), np.clip(up, -0.7, 0.7)
    want = (gate / (1 + np.exp(-1.702 * gate)) * (up + 1)) @ own["down_proj"].T + own["down_bias"]
    close(taps["model.layers.0.mlp.output"], want)


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_gradients_pass_at_the_limit_itself_in_both_wings(wing):
    """A gate that is exactly the limit, as 16 bits easily make it: the gradient passes whole, and does not beyond."""
    clamp = importlib.import_module(f"{wing}_impl.feed_forward.mixture_of_experts").clamp
    x, want = np.array([-1.5, -1.0, 0.0, 1.0, 1.5]), [0, 1, 1, 1, 0]
    if wing == "torch":
        import torch

        leaf = torch.tensor(x, requires_grad=True)
        clamp(leaf, -1.0, 1.0).sum().backward()
        assert leaf.grad.tolist() == want
    else:
        import jax
        import jax.numpy as jnp

        assert jax.grad(lambda v: clamp(v, -1.0, 1.0).sum())(jnp.asarray(x)).tolist() == want


# --- padding and caches -----------------------------------------------------------------------------------------------


@pytest.mark.full_for("jax")
def test_padding_changes_no_other_row(model_of, name):
    """Rows are padded on the left; each equals itself alone."""
    texts = [row[: 30 - 9 * number].tolist() for number, row in enumerate(batch(3)[0])]
    ids, positions = padded(texts)
    model = model_of(name, of(ENTRY))
    logits = model.forward(ids, positions).logits
    assert np.isfinite(logits).all()
    for row, text in enumerate(texts):
        close(logits[row, positions[row] >= 0], model.forward(np.array([text])).logits[0])


@pytest.mark.full_for("jax-1", "jax-2", "jax-30")
@pytest.mark.parametrize("parts", [[30], [7, 23], [1] * 30, [12, 1, 1, 9, 7]], ids=len)
def test_through_a_cache_in_any_parts(model_of, name, parts):
    model, ids = model_of(name, of((ENTRY, PLAIN))), batch()[0]
    cache, at, got = model.new_cache(2, 31), 0, []
    for part in parts:
        got.append(model.extend(cache, ids[:, at : at + part]))
        at += part
    close(np.concatenate(got, axis=1), model.forward(ids).logits)
    with pytest.raises(UserError, match="holds 30 of 31"):
        model.extend(cache, ids[:, :2])
    assert np.isfinite(model.extend(cache, ids[:, :1])).all()


@pytest.mark.full_for("jax")
def test_a_step_of_decoding_that_streams_its_products(model_of, wing):
    """It gathers the matrices of the chosen experts: PyTorch compiles it as a whole (not here), and JAX's loop would
    multiply all."""
    config, sampling = of((ENTRY, FULL)), SamplingConfig(8)
    prompts = [row[:5].tolist() for row in batch()[0]]
    want = model_of("numpy", config).generate(prompts, sampling)
    how = {"decode": "streamed"} | ({"compile": False} if wing == "torch" else {})
    assert model_of(wing, config).generate(prompts, sampling) == want
    assert model_of(wing, config, **how).generate(prompts, sampling) == want


@pytest.mark.full
def test_layers_in_a_scan(model_of):
    """Blocks with experts and blocks without, in turn."""
    ids, config = batch()[0], of((ENTRY, "gated_mlp"), num_layers=4)
    want, got = (model_of("jax", config, layers=how).forward(ids, taps=("*",)) for how in ("loop", "scan"))
    close(got.logits, want.logits)
    assert set(got.taps) == set(want.taps)
    for name, value in want.taps.items():
        close(got.taps[name], value, 1e-11)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"top_k": 6}, r"top_k is 6; allowed is a whole number up to num_experts \(5\)"),
        ({"top_k": 0}, "top_k is 0"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"expert_dim": 0}, "expert_dim is 0"),
        ({"routing": "softmax_then_topk"}, "did you mean 'softmax_then_top_k'"),
        ({"normalise": 1}, "normalise is 1"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"balance": -0.1}, "balance is -0.1"),
        ({"num_groups": 2}, r"num_groups is 2; allowed is 1, or a number that cuts num_experts \(5\) into groups"),
        ({"num_experts": 8, "num_groups": 8}, "num_groups is 8; allowed is 1"),
        ({"num_experts": 8, "num_groups": 2, "top_groups": 3}, r"top_groups is 3; allowed .* up to num_groups \(2\)"),
        ({"num_experts": 8, "num_groups": 4, "top_k": 3}, "top_k is 3; allowed is a whole number up to 2, the experts"),
        ({"limit": 0.0}, "limit is 0.0; allowed is a number > 0, or none"),
        ({"choice_bias": 1}, "choice_bias is 1"),
        ({"shared_dim": None}, "shared_gate is True; allowed is false where no shared expert"),
    ],
)
def test_what_a_mixture_cannot_be(change, told):
    with pytest.raises(UserError, match=told):
        ENTRY.with_(**change)


def test_names_that_come_near():
    with pytest.raises(UserError, match="did you mean 'mixture_of_experts'"):
        of("mixture_of_expert")
    with pytest.raises(UserError, match="did you mean 'grouped'"):
        Execution(experts="group")
    with pytest.raises(UserError, match="'top_k'"):
        of({"kind": "mixture_of_experts", "topk": 2})


def test_a_grouped_product_that_pytorch_lacks_is_refused(fresh_model):
    with pytest.raises(UserError, match="float32 and bfloat16, on a CPU or a GPU, not float64: use experts='loop'"):
        fresh_model("torch", of(ENTRY), "float64", experts="grouped")
    with pytest.raises(UserError, match="takes widths that 8 divides in bfloat16, not 16 and 12: use experts='loop'"):
        fresh_model("torch", of(ENTRY.with_(expert_dim=12)), "bfloat16", experts="grouped")
    assert fresh_model("torch", of(ENTRY.with_(expert_dim=12)), "float32", experts="grouped")
    with pytest.raises(UserError, match="leave experts='grouped' out"):
        fresh_model("numpy", of(ENTRY), "float64", experts="grouped")
