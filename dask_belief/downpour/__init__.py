"""Downpour SGD: asynchronous replicas on a sharded parameter server (paper, section 4.1 and Algorithm 1.1)."""
