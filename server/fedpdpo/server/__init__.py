"""The aggregation server: drives rounds, averages LoRA deltas, never sees a preference."""
