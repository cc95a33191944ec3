"""Language models: one decoder for many families, its weights in and out, and mixtures of experts that stay balanced."""
