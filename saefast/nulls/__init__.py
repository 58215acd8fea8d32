"""Draw or compute what chance gives: similarities, random subsets, permutations."""
