"""Fine-tuning: methods that train a thousandth of a generator, class tables, adapters."""
