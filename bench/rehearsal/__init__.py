"""Parts of `bench.rehearse`: a pretended GPU, programs to run on it, and the compiler."""
