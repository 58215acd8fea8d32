"""What chance gives: distributions of similarities, random subsets and permutations."""
