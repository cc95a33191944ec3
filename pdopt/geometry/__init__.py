"""Sets, moves inside them, proximal maps and Bregman divergences."""
