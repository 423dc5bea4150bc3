"""`parallax search`: training runs with settings that Optuna chooses."""
