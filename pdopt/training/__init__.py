"""Constrained training of language models: rollouts, objectives, multipliers, the trainer."""
