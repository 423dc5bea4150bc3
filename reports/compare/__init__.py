"""The main job: one model in both wings, checked, trained and measured side by side, told on one page."""
