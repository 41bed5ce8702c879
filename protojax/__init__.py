"""Prototype learning in JAX and Flax: a class, and the few training examples that decided it."""
