"""Several real processes on this machine: the harness (`group.py`) and what they run (`workers/`)."""
