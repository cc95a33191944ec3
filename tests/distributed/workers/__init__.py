"""Programs that a group of processes runs; each prints its results on lines that start with the tag."""
