"""study: how stability and reproducible subspaces depend on scale, as sweeps in resumable pieces.

`python -m bench study DIR` runs or resumes the pieces and collects their rows.
"""
