"""Multi-head attention by the framework's own module, on the parameters of ours."""

import torch
from torch.nn import functional as F

from common.backend import without_cache, without_dropout
from common.taps import NO_TAPS

from ..masks import causal_mask
from .multi_head import MultiHeadAttention


class FrameworkAttention(MultiHeadAttention):
    """The same by what is in `torch.nn.MultiheadAttention`, which makes q, k and v itself: so it has no cache.

    Its boolean mask says who is hidden. x [B, T, E], positions [B or 1, T]. Returns ([B, T, E], None).
    """

    weights = False

    def forward(self, x_BTE, positions_BT, cache=None, dropout_key=None, taps=NO_TAPS):
        # [1] what it cannot do is refused
        without_cache("The framework's own", cache)
        without_dropout("The framework's own", self.rate, dropout_key)
        # [2] a query that sees no key sees all of them, so that nothing becomes NaN
        mask_B1TS = causal_mask(positions_BT, positions_BT)
        sees_B1T1 = mask_B1TS.any(-1, keepdim=True)
        # [3] project, attend, join, project
        output_BTE, weights_BHTS = self._module(x_BTE, mask_B1TS | ~sees_B1T1)
        if weights_BHTS is not None:
            taps("weights", weights_BHTS)
        # [4] where nothing was visible only the last bias is left
        return taps("output", torch.where(sees_B1T1[:, 0], output_BTE, self.o_proj.bias.to(x_BTE.dtype))), None

    def _module(self, x_BTE, mask_B1TS):
        kind, linears = x_BTE.dtype, (self.q_proj, self.k_proj, self.v_proj)
        biases = None if self.q_proj.bias is None else torch.cat([linear.bias for linear in linears]).to(kind)
        hidden = ~mask_B1TS.expand(len(x_BTE), self.num_heads, -1, -1).flatten(0, 1)
        x_TBE = x_BTE.transpose(0, 1)
        output_TBE, weights = F.multi_head_attention_forward(
            x_TBE, x_TBE, x_TBE, x_BTE.shape[-1], self.num_heads, None, biases, None, None, False, 0.0,
            self.o_proj.weight.to(kind), self.o_proj.bias.to(kind),
            need_weights=self.weights, attn_mask=hidden, average_attn_weights=False, use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight.to(kind), k_proj_weight=self.k_proj.weight.to(kind),
            v_proj_weight=self.v_proj.weight.to(kind),
        )  # fmt: skip
        return output_TBE.transpose(0, 1), weights


class FrameworkAttentionWithWeights(FrameworkAttention):
    """The same that also returns its weights, for which the module computes all of them at once."""

    weights = True
