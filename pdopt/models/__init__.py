"""Language models: one decoder for many families, their weights in and out, and sampling from them."""
