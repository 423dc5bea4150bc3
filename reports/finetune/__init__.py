"""`parallax finetune experiments`, and the report on fine-tuning with real data."""
