"""Frozen problem data with their own residuals, views for the methods, reading and writing."""
