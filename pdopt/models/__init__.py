"""Language models: one decoder for many families, its weights in and out, and balanced mixtures of experts."""
