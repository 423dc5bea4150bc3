"""What fine-tuning measures and makes beside the steps of training, through the door: either wing can be asked."""
