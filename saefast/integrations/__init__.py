"""Drop-ins for other packages: each module here imports the package it is for."""
