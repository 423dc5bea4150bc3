"""Adversarial vectors: inputs at which implementations tend to differ, each with the reason why it is there."""

from common.parity.adversarial import labels, lengths, sampling, scores, sizes, training, tuning, values
from common.parity.adversarial.edge import FLAGS, RESULTS, Edge

EDGES: dict[str, Edge] = {
    edge.name: edge
    for area in (scores, lengths, values, labels, training, sampling, sizes, tuning)
    for edge in area.EDGES
}

__all__ = ["EDGES", "FLAGS", "RESULTS", "Edge"]
