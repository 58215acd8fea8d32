"""Null models: similarities of random directions, random subsets, permutations."""
