"""Named methods: each a small table of arguments to the one saddle step."""
