"""`parallax diverge`: where do two implementations of one model first part ways, and which of them is off?

Both get the same weights and token ids. Their named intermediate values are compared in order. Then the oracle takes
each step by itself: from the values that one side has before a step it computes the next, so that a side's own error
is told from what it inherited (`replay.py`), and known mistakes are tried until one gives exactly the wrong value
(`mistakes.py`).
"""
