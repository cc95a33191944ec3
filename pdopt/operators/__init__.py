"""Linear maps as pytrees: `matvec`, `rmatvec`, norms, scaling."""
