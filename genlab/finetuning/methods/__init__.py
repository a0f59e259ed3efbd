"""Methods of fine-tuning, one file each."""
