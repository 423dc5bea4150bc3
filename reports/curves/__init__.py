"""`parallax curves`: what training runs logged, drawn."""
