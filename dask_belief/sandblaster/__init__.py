"""Sandblaster: batch methods on a sharded parameter server (paper, section 4.2 and Algorithm 1.2)."""
