"""The host side: precision scope, interrupts, progress, checkpoints."""
