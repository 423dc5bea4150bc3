"""Feed-forward variants, one file each, chosen by name."""

from importlib import import_module


def feed_forward(config, layer, execution):
    """The feed-forward of a layer, as the config's pattern has it: the class of that kind, in the file of that name."""
    # [1] the kind
    entry = config.feed_forward_of(layer)
    # [2] its class
    module = getattr(import_module(f"{__name__}.{entry.kind}"), entry.module)
    return module(config, entry, execution)
