"""The registry of cases. A case is data: what is computed, from which recipe, and what is looked at.

Once a case is registered, its test vectors, its parity tests in every tier and its gradient checks follow without
another line. To add one, add an entry to `CASES`.
"""

from common.adapters import Adapter
from common.case import Case as Case
from common.config import GPTConfig, SamplingConfig
from common.errors import unknown
from common.preference import Preference
from common.variants import GatedDeltaNet, GatedMLP, GroupedQuery, Latent, MixtureOfExperts, PlainMLP, Sparse
from common.variants.rotary import Rotary

_TINY = GPTConfig(19, 16, 8, 2, 2, ff_dim=20)
_SMALL = GPTConfig(11, 12, 4, 1, 2, ff_dim=6)
_WINDOW = GroupedQuery(
    2, head_dim=6, window=5, rotary=Rotary(base=50.0, fraction=0.7), softcap=3.0, sinks=True, scale=0.4
)
_LONG = GroupedQuery(4, head_dim=6, rotary=Rotary(base=1e4, scaling="yarn", factor=4.0, original=64))
_GATED = GroupedQuery(2, alibi=True, qk_norm="width", gate=True, out_bias=True)
# each of these numbers changes the angles of a head of 4 under some scaling, which C6 observes
_TURN = Rotary(base=30.0, scaling="llama3", factor=4.0, original=50, fast=2.0, truncate=False)
_UNSCALED = _TURN.with_(scaling="none")
_LOCAL = GroupedQuery(2, window=3, rotary=_TURN, qk_norm="head")
_GLOBAL = _LOCAL.with_(window=None, rotary=Rotary(base=1000.0, scaling="yarn", factor=4.0, original=200, fast=2.0))
_TODAY = GPTConfig(
    19,
    16,
    8,
    2,
    4,
    ff_dim=12,
    tie_embeddings=False,
    activation="silu",
    attention=(_LOCAL.with_(head_dim=4, scale=0.4), _GLOBAL.with_(head_dim=4)),
    feed_forward=(GatedMLP(),),
    norm="rms_norm",
    positions="none",
)
_LATENT = Latent(rank=6, query_rank=5, head_dim=3, value_dim=5, rotary=Rotary(base=50.0), rotary_dim=4)
_BOOK_LATENT = Latent(rank=6, norm=False, out_bias=True)
_DELTA = GatedDeltaNet(num_key_heads=2, num_value_heads=4, key_dim=3, value_dim=5, kernel=3, out_bias=True)
_SPARSE = Sparse(
    2,
    rotary=Rotary(base=50.0),
    top_k=4,
    index_heads=2,
    index_dim=6,
    index_rotary=Rotary(base=30.0, fraction=0.5),
)
_SPARSE_GATED = Sparse(
    1, head_dim=6, top_k=5, index_heads=2, index_dim=4, index_norm=False, weighting="softmax", sinks=True, gate=True
)
_TAUGHT = _SPARSE_GATED.with_(index_loss=0.7), _SPARSE.with_(index_heads=3, index_loss=0.4)
_ROUTED = MixtureOfExperts(4, 2, expert_dim=8, normalise=False, scale=1.5, shared_dim=12, shared_gate=True)
_CHOSEN = MixtureOfExperts(5, 2, expert_dim=8, routing="top_k_then_softmax", normalise=False)
_GROUPED = _CHOSEN.with_(
    num_experts=8,
    top_k=3,
    routing="top_k_then_sigmoid",
    normalise=True,
    scale=2.5,
    choice_bias=True,
    num_groups=4,
    top_groups=2,
    shared_dim=8,
)
_CLAMPED = _CHOSEN.with_(router_bias=True, expert_bias=True, limit=0.8, offset=1.0)
_EVERYTHING = _GROUPED.with_(router_bias=True, expert_bias=True, limit=0.8, offset=1.0, shared_gate=True)
_STRETCHED = Rotary(base=20.0, scaling="linear", factor=4.0)
_NEAR = GroupedQuery(2, window=4, alibi=True, sinks=True)
_FAR = GroupedQuery(1, head_dim=4, rotary=_STRETCHED, softcap=2.0, gate=True)
_SHARED = (_NEAR, _FAR, _NEAR, *(maker.with_(shares=True) for maker in (_NEAR, _FAR)))  # two make for one window
_WIDE = GPTConfig(211, 300, 48, 3, 3, norm_eps=1e-4)
_LORA = Adapter(targets=("*.q_proj", "*.down_proj", "lm_head"), rank=3, alpha=5.0, dropout=0.2)
_DORA = _LORA.with_(name="turned", targets=("*.v_proj", "*.up_proj"), dora=True, rslora=True)
_PREFERENCES = (
    Preference(),
    Preference("cdpo", beta=0.3, smoothing=0.2, reduction="mean"),
    Preference("ipo", beta=0.5),
    Preference("hinge", beta=0.2),
    Preference("simpo", beta=2.0, gamma=0.3),
    Preference("orpo", beta=0.4),
)
_SAMPLING = (
    SamplingConfig(8),
    SamplingConfig(8, temperature=0.8, top_k=7, seed=11),
    SamplingConfig(8, temperature=1.3, top_p=0.7, seed=12),
)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("layer_norm", "layer normalisation", _TINY.with_(norm_eps=1e-3), "model.norm"),
        Case("mlp", "feed-forward with tanh GELU", _TINY, "model.layers.1.mlp"),
        Case("mlp_exact_gelu", "feed-forward with exact GELU", _TINY.with_(activation="gelu"), "model.layers.1.mlp"),
        Case("attention", "causal multi-head attention", _TINY, "model.layers.0.self_attn"),
        Case(
            "attention_no_bias",
            "causal multi-head attention without q, k, v biases",
            _TINY.with_(qkv_bias=False),
            "model.layers.0.self_attn",
        ),
        Case("rms_norm", "root mean square normalisation", _TODAY.with_(norm_eps=1e-3), "model.norm"),
        Case("gated_mlp", "SwiGLU feed-forward", _TODAY, "model.layers.1.mlp"),
        Case("gated_mlp_gelu", "GeGLU feed-forward", _TODAY.with_(activation="gelu_tanh"), "model.layers.1.mlp"),
        Case(
            "grouped_query_window",
            "grouped-query attention over a window, two of three numbers rotary, soft cap, sinks",
            _TINY.with_(num_heads=4, attention=_WINDOW),
            "model.layers.0.self_attn",
            length=14,  # at least twice the window and 3
        ),
        Case(
            "grouped_query_gated",
            "grouped-query attention with ALiBi, normed queries and keys, and a gate",
            _TINY.with_(embed_dim=12, num_heads=6, attention=_GATED, qkv_bias=False),  # slopes of no power of two
            "model.layers.1.self_attn",
        ),
        Case(
            "grouped_query_no_positions",
            "grouped-query attention that knows order by its mask alone, with norms over the whole width",
            _TINY.with_(num_heads=4, attention=GroupedQuery(2, qk_norm="width"), positions="none"),
            "model.layers.0.self_attn",
        ),
        Case(
            "latent_attention",
            "latent attention with a latent for queries, norms and a key that turns",
            _TINY.with_(attention=_LATENT),
            "model.layers.0.self_attn",
        ),
        Case(
            "latent_attention_book",
            "latent attention without norms and rotary part",
            _TINY.with_(attention=_BOOK_LATENT, qkv_bias=False),
            "model.layers.1.self_attn",
        ),
        Case(
            "gated_deltanet",
            "Gated DeltaNet: four value heads on two key heads, a convolution over three tokens",
            _TINY.with_(attention=_DELTA),
            "model.layers.1.self_attn",
        ),
        Case(
            "sparse",
            "sparse attention, its indexer rotary in part",
            _TINY.with_(num_heads=4, attention=_SPARSE),
            "model.layers.0.self_attn",
        ),
        Case(
            "experts",
            "mixture of experts with a gated shared expert",
            _TINY.with_(feed_forward=_ROUTED.with_(normalise=True)),
            "model.layers.1.mlp",
        ),
        Case(
            "experts_chosen_softmax",
            "mixture of experts, softmax over the chosen",
            _TODAY.with_(feed_forward=_CHOSEN),
            "model.layers.0.mlp",
        ),
        Case(
            "experts_sigmoid",
            "mixture of experts, sigmoids of the chosen made one",
            _TODAY.with_(feed_forward=_CHOSEN.with_(routing="top_k_then_sigmoid", normalise=True, scale=1.5)),
            "model.layers.0.mlp",
        ),
        Case(
            "experts_grouped",
            "mixture of experts chosen by sigmoids and a bias, from the two best of four groups, as in DeepSeek-V3",
            _TODAY.with_(feed_forward=_GROUPED),
            "model.layers.0.mlp",
        ),
        Case(
            "experts_clamped",
            "mixture of experts with biases and a clamped SwiGLU, as in gpt-oss",
            _TODAY.with_(feed_forward=_CLAMPED, activation="quick_gelu"),
            "model.layers.1.mlp",
        ),
        Case("block", "pre-norm block", _TINY, "model.layers.1"),
        Case("gpt", "GPT with a tied head", _TINY, train_steps=2, sampling=_SAMPLING),
        Case(
            "gpt_untied",
            "GPT with a head of its own, exact GELU, no q, k, v biases",
            _TINY.with_(tie_embeddings=False, qkv_bias=False, activation="gelu"),
            sampling=_SAMPLING,
        ),
        Case(
            "gpt_dropout",
            "GPT with three dropout rates, masks from the shared generator",
            _TINY.with_(dropout_embed=0.1, dropout_attn=0.3, dropout_shortcut=0.2),
            train_steps=1,
        ),
        Case(
            "gpt_muon",
            "GPT with biases and a mixture of experts whose matrices Muon moves",
            _TINY.with_(feed_forward=(PlainMLP(), _CHOSEN.with_(expert_bias=True)), tie_embeddings=False),
            train_steps=2,
            optimizer="muon",
        ),
        Case(
            "gpt_today",
            "GPT with RMS norms, SwiGLU, local and global layers of grouped-query attention, scaled rotary positions",
            _TODAY.with_(num_layers=3),  # ends within a period
            train_steps=2,
            sampling=_SAMPLING,
        ),
        Case(
            "gpt_latent",
            "GPT with latent attention and RMS norms",
            _TINY.with_(
                attention=_LATENT.with_(scale=0.6, rotary=_UNSCALED),
                norm="rms_norm",
                positions="none",
                tie_embeddings=False,
            ),
            train_steps=2,
            seed=4,  # by many others one rounding of the weights moves an average by 1e-12 after a hundred steps
            sampling=_SAMPLING,
        ),
        Case(
            "gpt_hybrid",
            "GPT with a layer of Gated DeltaNet to one of gated attention",
            # a short state that a norm makes long again moves by far more than a rounding: 1e-11 after a hundred steps
            _TODAY.with_(attention=(_DELTA, _LOCAL.with_(head_dim=4, window=None, gate=True)), norm_eps=0.05),
            train_steps=2,
            seed=3,
            sampling=_SAMPLING,
        ),
        Case(
            "gpt_deltanet_channel",
            "GPT of Gated DeltaNet whose every channel of a value is corrected by a strength of its own",
            _TINY.with_(attention=_DELTA.with_(beta="channel"), norm_eps=0.05),  # as above: 1e-6 after a hundred steps
            seed=7,
        ),
        Case(
            "gpt_sparse",
            "GPT whose layers attend to the keys that an indexer chooses, which learns to",
            _TINY.with_(num_heads=4, tie_embeddings=False, attention=_TAUGHT),
            train_steps=2,
            sampling=_SAMPLING,
        ),
        Case(
            "gpt_experts",
            "GPT of mixtures of experts, every second one in groups, with a bias of the choice, biases and clamps",
            _TINY.with_(feed_forward=(_ROUTED, _EVERYTHING)),
            seed=867,  # by most others the bias alone decides, or a rounding to 16 bits does
            sampling=_SAMPLING,
        ),
        Case(
            "gpt_balance",
            "GPT with a balance of experts",
            _TODAY.with_(feed_forward=(_ROUTED.with_(balance=0.5), GatedMLP())),
            train_steps=2,
            seed=3,  # by many others what one rounding moves grows a thousandfold in a hundred steps
        ),
        Case(
            "gpt_lora",
            "GPT with an adapter of queries, feed-forward and head, which alone learns",
            _TINY.with_(num_layers=1, tie_embeddings=False, adapters=_LORA),
            train_steps=1,
            sampling=_SAMPLING[:1],
        ),
        Case(
            "gpt_dora",
            "GPT with two adapters, one with magnitudes and another scale, which learn beside the last norm",
            _TINY.with_(num_layers=1, adapters=(_DORA, _LORA.with_(targets=("*.v_proj",), rslora=True, dropout=0.0))),
            train_steps=1,
            trained=("*.lora_*", "model.norm.*"),
        ),
        Case(
            "gpt_classifier",
            "GPT that classifies, whose last block, norm and head learn",
            _TINY.with_(num_labels=3),
            train_steps=2,
            trained=("model.layers.1.*", "model.norm.*", "score.*"),
        ),
        Case(
            "gpt_classifier_mean",
            "GPT of one layer that classifies by the mean of hidden states, each of which sees the whole text",
            _TINY.with_(num_layers=1, num_labels=4, pooling="mean", causal=False, dropout_attn=0.2),
            train_steps=1,
        ),
        *(
            Case(
                f"gpt_{settings.loss}",
                f"GPT that learns preferences: {settings.loss}",
                _SMALL,
                batch=4,
                length=9,
                train_steps=1,
                preference=settings,
            )
            for settings in _PREFERENCES
        ),
        Case(
            "gpt_sharing",
            "GPT whose later layers share keys and values of earlier ones: windows, ALiBi, sinks;"
            " stretched rotary, a gate",
            _TINY.with_(num_layers=5, num_heads=4, attention=_SHARED, positions="sinusoidal"),
            full_gradient=False,
            sampling=_SAMPLING,
        ),
        Case(
            "gpt_wide",
            "GPT with 16-wide heads, an odd vocabulary and positions past 256",
            _WIDE,
            length=280,
            full_gradient=False,
        ),
        Case(
            "gpt_long",
            "GPT of one layer: grouped-query attention of 16 heads, rotary positions scaled, and past 256",
            _TINY.with_(
                context_length=264, num_layers=1, num_heads=16, embed_dim=16, attention=_LONG, positions="none"
            ),
            batch=1,
            length=260,
            full_gradient=False,
        ),
    )
}


def case(name: str) -> Case:
    """The case with that name; unknown names are answered with near matches."""
    if name not in CASES:
        raise unknown("case", name, CASES)
    return CASES[name]
