"""Names carry no meaning: heads and vocabulary entries in another order compute the same function."""

import numpy as np
import pytest

LENGTH, BOUND = 6, 1e-12  # float64 rounding in sums of another order: 1e-14 here
KINDS = ("multi_head", "grouped_query")  # whose heads can change places by themselves


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=BOUND * np.abs(want).max())


def with_heads_reversed(config, weights):
    """(weights, how many layers changed): the blocks of every key/value head, and of its queries, reversed. Slopes and
    layers that read each other's keys tell heads apart: such layers stay as they are.
    """
    out, moved = dict(weights), 0
    for layer in range(config.num_layers):
        entry, attention = config.attention_of(layer), f"model.layers.{layer}.self_attn."
        if entry.kind not in KINDS or getattr(entry, "alibi", False) or entry.hands_on(config):
            continue
        _, kv_heads, _ = entry.heads(config)
        normed = ("q_norm", "k_norm") if getattr(entry, "qk_norm", "") == "width" else ()
        for name in ("q_proj", "k_proj", "v_proj", "gate_proj", *normed):
            for key in (f"{attention}{name}.weight", f"{attention}{name}.bias"):
                if key in weights:
                    out[key] = np.concatenate(np.split(weights[key], kv_heads)[::-1])
        if f"{attention}sinks" in weights:
            out[f"{attention}sinks"] = np.concatenate(np.split(weights[f"{attention}sinks"], kv_heads)[::-1])
        output = attention + "o_proj.weight"
        out[output] = np.concatenate(np.split(weights[output], kv_heads, axis=1)[::-1], axis=1)
        moved += kv_heads > 1
    return out, moved


@pytest.mark.full_for("muon-jax", "balance-jax")  # layers that other models have
def test_heads_in_another_order(plain_case, case_model, fresh_case_model, late, name):
    """q, k and v by blocks of rows, o by blocks of columns; q, k, v alone would be another model."""
    ids, positions = late(plain_case, 2, LENGTH)
    weights, moved = with_heads_reversed(plain_case.config, plain_case.weights())
    if not moved:
        pytest.skip("this model has no attention with several key/value heads that could change places")
    want = case_model(name, plain_case).forward(ids, positions).logits
    close(fresh_case_model(name, plain_case, weights=weights).forward(ids, positions).logits, want)
    half = {k: plain_case.weights()[k] if "o_proj" in k else v for k, v in weights.items()}
    other = fresh_case_model(name, plain_case, weights=half).forward(ids, positions).logits
    assert np.abs(other - want).max() > 1e-3 * np.abs(want).max()


OTHERS = ("untied", "dropout", "muon", "latent", "hybrid", "sparse", "experts", "balance", "sharing", "wide", "long")


@pytest.mark.full_for(*(f"{name}-jax" for name in OTHERS))  # a tied and an untied head stay, whatever lies below
def test_a_vocabulary_in_another_order(plain_case, case_model, fresh_case_model, late, name):
    """Rows of the embedding and of the head, ids and targets permuted: permuted logits, an equal loss."""
    ids, positions = late(plain_case, 2, LENGTH)
    targets = np.roll(ids, -1, axis=1)
    order = np.random.default_rng(5).permutation(plain_case.config.vocab_size)  # new entry i is the old entry order[i]
    place = np.argsort(order).astype(np.int32)
    named = ("model.embed_tokens.weight", "lm_head.weight")
    weights = {k: v[order] if k in named else v for k, v in plain_case.weights().items()}
    model, renamed = case_model(name, plain_case), fresh_case_model(name, plain_case, weights=weights)
    want = model.forward(ids, positions).logits
    close(renamed.forward(place[ids], positions).logits, want[..., order])
    assert renamed.loss(place[ids], place[targets]) == pytest.approx(model.loss(ids, targets), rel=BOUND)
