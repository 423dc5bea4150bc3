"""`parallax estimate`: what a model would cost, as a table and as plots, from closed forms alone."""
