"""The saddle step and what is wrapped around it: signals, accelerations, restarts, step sizes, the loop."""
