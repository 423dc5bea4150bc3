"""Who may attend to whom: boolean, True means attend, derived from absolute positions."""

import torch


def causal_mask(query_positions_BT, key_positions_BS):
    """[B, 1, T, S]: a query sees keys at its own position and before; position -1 is padding or an empty slot. None for
    positions None: all rows count 0, 1, 2, …, which the kernel must know how to do (fused attention)."""
    # [1] not later than the query, and not empty
    if query_positions_BT is None:
        return None
    query, key = query_positions_BT[:, None, :, None], key_positions_BS[:, None, None, :]
    return (key <= query) & (key >= 0)


def full_mask(query_positions_BT, key_positions_BS):
    """[B, 1, T, S]: a query sees all keys, later ones too; position -1 is padding or an empty slot."""
    # [1] not empty
    seen_B1TS = torch.ones_like(query_positions_BT[:, None, :, None], dtype=bool)
    return seen_B1TS & (key_positions_BS[:, None, None, :] >= 0)


def local_mask(query_positions_BT, key_positions_BS, window):
    """[B, 1, T, S]: a query sees `window` positions, the last of them its own; `causal_mask` hides later ones."""
    # [1] not too far back
    return key_positions_BS[:, None, None, :] > query_positions_BT[:, None, :, None] - window


class StoredMask:
    """[1, 1, T, T]: what `causal_mask` gives for positions 0, 1, 2, …, cut out of one for the whole context, which is
    kept by every layer. Source: Raschka, *Build a Large Language Model (From Scratch)*, section 3.5.
    """

    def __init__(self, config, execution):
        size = 1, 1, config.context_length, config.context_length
        self.mask_11TS = torch.ones(size, dtype=torch.bool, device=execution.device).tril()

    def __call__(self, length):
        # [1] its upper left corner
        return self.mask_11TS[..., :length, :length]


def no_mask(length):
    """None: left to the kernel, or made from positions for every call."""
    # [1] nothing is kept
    return None


MASKS = {"plain": lambda config, execution: no_mask, "stored": StoredMask}
