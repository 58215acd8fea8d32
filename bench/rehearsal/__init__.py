"""What `bench.rehearse` is made of: a pretended GPU, programs to run on it, and the compiler."""
